"""From features, or audio of any length, to text."""
