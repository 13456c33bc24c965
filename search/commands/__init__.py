"""Commands of the command line: one file each, together with its output."""
