#!/usr/bin/env bats
# --help, the manual page and the README tell the same story, and it is that of the program.

# A program by its own name: where it, its page and its text are.
select_program() { # tm_ivshmem_server | ivshmem_client
	case $1 in
	tm_ivshmem_server) PROGRAM=$SERVER PAGE=$SOURCE_DIR/$1.8 CODE=$SOURCE_DIR/$1.c ;;
	*) PROGRAM=$SOURCE_DIR/client/$1 PAGE=$SOURCE_DIR/client/$1.1 CODE=$SOURCE_DIR/client/$1.c ;;
	esac
}

# The options that each names, as "-f --file", sorted.
options_of_help() {
	"$PROGRAM" --help | sed -nE 's/^  (-[A-Za-z]), (--[a-z]+).*/\1 \2/p' | sort
}

options_of_manual() {
	sed -nE 's/^\.It Fl ([A-Za-z]) ((Ns Oo )?Ar [a-z]+ (Oc )?)?, Fl Fl ([a-z]+).*/-\1 --\5/p' \
		"$PAGE" | sort
}

options_of_readme() {
	# shellcheck disable=SC2016 # backquotes of Markdown
	sed -nE 's/^\| `(-[A-Za-z])`, `(--[a-z]+).*/\1 \2/p' "$SOURCE_DIR/README.md" | sort
}

# What getopt_long itself knows: of the one, the letters; of the other, the words.
options_of_program() {
	sed -nE 's/.*short_options\[\] = "(.*)";/\1/p' "$CODE" | tr -d ':+' | fold -w 1 | sort
}

documents_agree() { # LEAST-NUMBER-OF-OPTIONS
	local short long help synopsis
	help=$(options_of_help)
	[ "$(wc -l <<<"$help")" -ge "$1" ]
	diff <(echo "$help") <(options_of_manual)
	diff <(cut -c 2 <<<"$help" | sort) <(options_of_program)
	while read -r short long; do
		# Whatever else is wrong with the command line, the option is known.
		run timeout 10 "$PROGRAM" "$short" 1 --no-such-option
		[[ $output != *"unknown option '$short'"* ]]
		run timeout 10 "$PROGRAM" "$long" 1 --no-such-option
		[[ $output != *"option '$long'"* ]]
	done <<<"$help"
	# Each takes a value in the manual page just if it takes one in --help.
	diff <("$PROGRAM" --help | sed -nE 's/^  -([A-Za-z]), --[a-z]+ [A-Z].*/\1/p' | sort) \
		<(sed -nE 's/^\.It Fl ([A-Za-z]) Ar .*/\1/p' "$PAGE" | sort)
	synopsis=$(sed -n '/^\.Sh SYNOPSIS/,/^\.Sh DESC/p' "$PAGE")
	while read -r short _; do
		short=${short#-}
		grep -qE "Fl ([a-zA-Z]*$short|[a-zA-Z] \| $short)" <<<"$synopsis" ||
			grep -qE "Fl (.* )?Fl $short |\| $short|Fl [a-zA-Z]*$short" <<<"$synopsis"
	done <<<"$help"
	# A terminal of 90 columns, and standard output.
	[ -z "$("$PROGRAM" --help | awk 'length > 90')" ]
	[ -z "$("$PROGRAM" --help 2>&1 >/dev/null)" ]
}

@test "the server's help, manual page and code have the same options" {
	select_program tm_ivshmem_server
	documents_agree 15
}

@test "the client's help, manual page and code have the same options" {
	select_program ivshmem_client
	documents_agree 5
}

@test "the README lists the server's options" {
	select_program tm_ivshmem_server
	diff <(options_of_help) <(options_of_readme)
}

@test "the client's commands and words stand in its help and its manual page" {
	select_program ivshmem_client
	commands=$(sed -nE '/ commands\[\] = \{/,/^\};/s/"/\n/gp' "$CODE" | grep -xE '[a-z]+')
	[ "$(wc -l <<<"$commands")" -eq 5 ]
	for command in $commands; do
		"$PROGRAM" --help | grep -q "^  $command "
		grep -q "^\.It Cm $command\b" "$PAGE"
		grep -q "^| \`$command\b" "$SOURCE_DIR/README.md"
	done
	for word in dump 'int ID VECTOR' 'int ID all' 'int all' help quit; do
		"$PROGRAM" --help | tr '\n' ' ' | grep -q "${word}[,.]"
		mandoc -T ascii "$PAGE" | col -b | sed -n '/^DIALOG/,/^[E]/p' | tr 'IDVECTOR' 'idvector' |
			grep -q "^     $(tr 'IDVECTOR' 'idvector' <<<"$word")\b"
		grep -q "^| none .*\`$word\`" "$SOURCE_DIR/README.md"
	done
	names=$(sed -nE 's/.*environment_set\("([A-Z_]+)".*/\1/p' "$CODE")
	[ "$(wc -l <<<"$names")" -eq 6 ]
	while read -r name; do
		grep -qx "\.It Ev $name" "$PAGE"
	done <<<"$names"
}

@test "the manual pages are clean" {
	command -v mandoc >/dev/null || skip "mandoc is missing"
	for page in "$SOURCE_DIR"/*.8 "$SOURCE_DIR"/client/*.[1-8]; do
		run mandoc -T lint -W warning "$page"
		echo "$output"
		found=$(grep -v 'outdated mandoc.db' <<<"$output" || true)
		[ -z "$found" ]
	done
}

@test "defaults in the documents are those of the program" {
	for text in /tmp/ivshmem_socket ivshmem; do
		grep -q "\"$text\"" "$SOURCE_DIR/tm_ivshmem_server.c"
		"$SERVER" --help | grep -q "default $text"
		grep -q "default \`$text\`" "$SOURCE_DIR/README.md"
	done
	grep -q '"/tmp/ivshmem_socket"' "$SOURCE_DIR/client/ivshmem_client.c"
	"$SOURCE_DIR/client/ivshmem_client" --help | grep -q 'default /tmp/ivshmem_socket'
}

@test "install and uninstall leave nothing behind" {
	make -C "$SOURCE_DIR" -s install DESTDIR="$TEST_DIR/root" PREFIX=/opt/fam
	[ "$("$TEST_DIR/root/opt/fam/sbin/tm_ivshmem_server" --version)" = "$("$SERVER" --version)" ]
	[ -s "$TEST_DIR/root/opt/fam/share/man/man8/tm_ivshmem_server.8" ]
	[ "$("$TEST_DIR/root/opt/fam/bin/ivshmem_client" --version)" = \
		"ivshmem_client $("$SERVER" --version | cut -d ' ' -f 2)" ]
	[ -s "$TEST_DIR/root/opt/fam/share/man/man1/ivshmem_client.1" ]
	[ -s "$TEST_DIR/root/opt/fam/share/man/man7/ivshmem_protocol.7" ]
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
