# Sourced with the command line's arguments: sets the variable of every `--name value` whose name is in `options`
# (lines of "name: help"). Anything else is kept in `overrides` for the configuration.
overrides=()

usage() {
  echo "usage: $0 [--option value ...] [--<config key> value ...]"
  while IFS= read -r line; do
    [ -n "$line" ] || continue
    name=${line%%:*}
    printf '  --%-14s %s (%s)\n' "$name" "${line#*: }" "${!name}"
  done <<<"$options"
  echo "Every key of $config and, with the prefix adapt_, of $adapter is an option too."
}

while [ $# -gt 0 ]; do
  case "$1" in
    --help | -h) usage; exit 0 ;;
    --?*) ;;
    *) echo "$0: unexpected argument '$1'; options are: --name value" >&2; usage >&2; exit 2 ;;
  esac
  name=${1#--}
  [ $# -ge 2 ] || { echo "$0: --$name: a value is missing" >&2; exit 2; }
  if grep -q "^$name:" <<<"$options"; then
    printf -v "$name" '%s' "$2"
  else
    overrides+=("--$name" "$2")
  fi
  shift 2
done
