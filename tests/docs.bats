#!/usr/bin/env bats
# --help, the manual page and the README tell the same story, and it is that of the program.

# The options that each names, as "-f --file", sorted.
options_of_help() {
	"$SERVER" --help | sed -nE 's/^  (-[A-Za-z]), (--[a-z]+).*/\1 \2/p' | sort
}

options_of_manual() {
	sed -nE 's/^\.It Fl ([A-Za-z]) (Ar [a-z]+ )?, Fl Fl ([a-z]+).*/-\1 --\3/p' \
		"$SOURCE_DIR/tm_ivshmem_server.8" | sort
}

options_of_readme() {
	# shellcheck disable=SC2016 # backquotes of Markdown
	sed -nE 's/^\| `(-[A-Za-z])`, `(--[a-z]+).*/\1 \2/p' "$SOURCE_DIR/README.md" | sort
}

# What getopt_long itself knows: of the one, the letters; of the other, the words.
options_of_program() {
	sed -nE 's/.*short_options\[\] = "(.*)";/\1/p' "$SOURCE_DIR/tm_ivshmem_server.c" |
		tr -d ':' | fold -w 1 | sort
}

@test "help, manual page and README list the same options" {
	help=$(options_of_help)
	[ "$(wc -l <<<"$help")" -ge 15 ]
	diff <(echo "$help") <(options_of_manual)
	diff <(echo "$help") <(options_of_readme)
}

@test "the program takes the options that are listed, and no others" {
	diff <(options_of_help | cut -c 2 | sort) <(options_of_program)
	while read -r short long; do
		# Whatever else is wrong with the command line, the option is known.
		run timeout 10 "$SERVER" "$short" 1 --no-such-option
		[[ $output != *"unknown option '$short'"* ]]
		run timeout 10 "$SERVER" "$long" 1 --no-such-option
		[[ $output != *"option '$long'"* ]]
	done < <(options_of_help)
}

@test "each option takes a value in the manual page just if it takes one in --help" {
	diff <("$SERVER" --help | sed -nE 's/^  -([A-Za-z]), --[a-z]+ [A-Z].*/\1/p' | sort) \
		<(sed -nE 's/^\.It Fl ([A-Za-z]) Ar .*/\1/p' "$SOURCE_DIR/tm_ivshmem_server.8" | sort)
}

@test "the synopsis of the manual page names every option" {
	synopsis=$(sed -n '/^\.Sh SYNOPSIS/,/^\.Sh DESC/p' "$SOURCE_DIR/tm_ivshmem_server.8")
	for letter in $(options_of_help | cut -c 2); do
		grep -qE "Fl ([a-zA-Z]*$letter|[a-zA-Z] \| $letter)" <<<"$synopsis" ||
			grep -qE "Fl (.* )?Fl $letter |\| $letter|Fl [a-zA-Z]*$letter" <<<"$synopsis"
	done
}

@test "help fits a terminal of 90 columns and goes to standard output" {
	run "$SERVER" --help
	[ "$status" -eq 0 ]
	[ -z "$(awk 'length > 90' <<<"$output")" ]
	[ -z "$("$SERVER" --help 2>&1 >/dev/null)" ]
}

@test "the manual page is clean" {
	command -v mandoc >/dev/null || skip "mandoc is missing"
	run mandoc -T lint -W warning "$SOURCE_DIR/tm_ivshmem_server.8"
	echo "$output"
	found=$(grep -v 'outdated mandoc.db' <<<"$output" || true)
	[ -z "$found" ]
}

@test "defaults in the documents are those of the program" {
	for text in /tmp/ivshmem_socket ivshmem; do
		grep -q "\"$text\"" "$SOURCE_DIR/tm_ivshmem_server.c"
		"$SERVER" --help | grep -q "default $text"
		grep -q "default \`$text\`" "$SOURCE_DIR/README.md"
	done
}

@test "install and uninstall leave nothing behind" {
	make -C "$SOURCE_DIR" -s install DESTDIR="$TEST_DIR/root" PREFIX=/opt/fam
	[ "$("$TEST_DIR/root/opt/fam/sbin/tm_ivshmem_server" --version)" = "$("$SERVER" --version)" ]
	[ -s "$TEST_DIR/root/opt/fam/share/man/man8/tm_ivshmem_server.8" ]
	grep -q '^ExecStart=/opt/fam/sbin/tm_ivshmem_server ' \
		"$TEST_DIR/root/opt/fam/lib/systemd/system/tm_ivshmem_server@.service"
	make -C "$SOURCE_DIR" -s uninstall DESTDIR="$TEST_DIR/root" PREFIX=/opt/fam
	[ -z "$(find "$TEST_DIR/root" ! -type d)" ]
}

@test "dist packs what builds" {
	git -C "$SOURCE_DIR" rev-parse HEAD >/dev/null 2>&1 || skip "this is no git checkout"
	version=$("$SERVER" --version | cut -d ' ' -f 2)
	cp -r "$SOURCE_DIR/.git" "$TEST_DIR/.git"
	git -C "$TEST_DIR" checkout -q -f HEAD
	make -C "$TEST_DIR" -s dist
	tar -xzf "$TEST_DIR/tm_ivshmem_server-$version.tar.gz" -C "$TEST_DIR"
	make -C "$TEST_DIR/tm_ivshmem_server-$version" -s
	[ "$("$TEST_DIR/tm_ivshmem_server-$version/tm_ivshmem_server" --version)" = "tm_ivshmem_server $version" ]
}
