# shellcheck shell=bash
# A manual page as a reader has it before them: in one layout, whatever that of the system is, and
# without the letters that are struck twice to be bold. The usual tool for that, col, is not on every
# system that has mandoc.
manual_text() { # PAGE
	mandoc -T ascii -O indent=5,width=78 "$1" | sed 's/.\x08//g'
}
