"""What is recognised or translated, and how that is measured: a task a file."""
