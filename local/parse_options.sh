# Sourced with the command line's arguments: sets the variable of every `--name value` (or `--name=value`; dashes are
# underscores) whose name is in `options` (lines of "name: help"), and lists it in `given`. Anything else is kept in
# `overrides` for the configuration. Where an option is true or false, it is true without a value. Of the names in
# `paths` a relative path is seen from where the command was typed, which was before run.sh changed to its own folder.
# The help lists all options but `unlisted`.
overrides=()
given=" "

usage() {
  echo "usage: $0 [--option value ...] [--<config key> value ...]"
  while IFS= read -r line; do
    name=${line%%:*}
    [ -n "$name" ] && [ "$name" != "$unlisted" ] || continue
    printf '  --%-14s %s (%s)\n' "$name" "${line#*: }" "${!name}"
  done <<<"$options"
  echo "Every key of $config and, with the prefix adapt_, of $adapter is an option too."
}

is_relative_path() { # NAME VALUE
  case " $paths " in *" $1 "*) ;; *) return 1 ;; esac
  case "$2" in
    "" | /*) return 1 ;;
    */* | *.yaml) ;;
    *) [ "$1" != adapter ] ;; # which may be a name in conf/adapter
  esac
}

while [ $# -gt 0 ]; do
  case "$1" in
    --help | -h) usage; exit 0 ;;
    --?*) ;;
    *) echo "$0: unexpected argument '$1'; options are: --name value" >&2; usage >&2; exit 2 ;;
  esac
  name=${1%%=*} own=false kind=any
  name=${name#--}
  name=${name//-/_}
  case $'\n'$options in
    *$'\n'"$name:"*)
      own=true
      case "${!name}" in true | false) kind=boolean ;; esac
      ;;
  esac
  if [[ "$1" == *=* ]]; then
    value=${1#*=}
  elif [ $# -ge 2 ] && [[ "$2" != --* ]]; then
    value=$2
    shift
  elif [ $kind = boolean ]; then
    value=true
  else
    echo "$0: --$name: a value is missing" >&2
    exit 2
  fi
  shift
  case "$kind $value" in
    boolean\ true | boolean\ false | any\ *) ;;
    *) echo "$0: --$name: '$value': true or false" >&2; exit 2 ;;
  esac
  if is_relative_path "$name" "$value"; then value=$OLDPWD/$value; fi
  if [ $own = true ]; then
    printf -v "$name" '%s' "$value"
    given+="$name "
  else
    overrides+=("--$name" "$value")
  fi
done
