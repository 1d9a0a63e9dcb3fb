#!/usr/bin/env bats
# --help, the manual page and the README tell the same story, and it is that of the program.

load lib/manual

# A program by its own name: where it, its page and its text are.
select_program() { # tm_ivshmem_server | ivshmem_client
	case $1 in
	tm_ivshmem_server) PROGRAM=$SERVER PAGE=$SOURCE_DIR/$1.8 CODE=$SOURCE_DIR/server/options.c ;;
	*) PROGRAM=$SOURCE_DIR/client/$1 PAGE=$SOURCE_DIR/client/$1.1 CODE=$SOURCE_DIR/client/$1.c ;;
	esac
}

# The options that each names, as "-f --file" or, without a letter, "- --check", sorted.
options_of_help() {
	"$PROGRAM" --help |
		sed -nE 's/^  (-[A-Za-z]), (--[a-z]+).*/\1 \2/p; s/^      (--[a-z-]+).*/- \1/p' | sort
}

options_of_manual() {
	manual_section OPTIONS |
		sed -nE 's/^\.It Fl ([A-Za-z]) ((Ns Oo )?Ar [a-z]+ (Oc )?)?, Fl Fl ([a-z]+).*/-\1 --\5/p
			s/^\.It Fl Fl ([a-z-]+).*/- --\1/p' | sort
}

manual_section() { # NAME
	sed -n "/^\.Sh $1/,/^\.Sh/p" "$PAGE"
}

# The synopsis by one of the names that a page has.
manual_synopsis() { # NAME
	local first
	first=$(sed -nE 's/^\.Nm ([^ ]+).*/\1/p' "$PAGE" | head -n 1)
	manual_section SYNOPSIS | awk -v name="$1" -v at="$first" -v first="$first" '
		/^\.Nm/ { at = NF > 1 ? $2 : first }
		at == name'
}

# The server by the name of QEMU's.
as_qemu() { # ARGUMENT...
	ln -sf "$(realpath "$SERVER")" "$TEST_DIR/ivshmem-server"
	"$TEST_DIR/ivshmem-server" "$@"
}

# The options that each names for that: "-F", or "-l VALUE" if it takes one.
qemu_options_of_help() {
	as_qemu -h | sed -nE 's/^  (-[A-Za-z])(, --help)?( [A-Z]+)?(\[.*\])?  .*/\1\3/p' |
		sed 's/ .*/ VALUE/' | sort
}

qemu_options_of_manual() {
	manual_section 'AS IVSHMEM-SERVER' |
		sed -nE 's/^\.It Fl ([A-Za-z])( Ar [a-z]+)?( , Fl Fl help)?$/-\1\2/p' |
		sed 's/ .*/ VALUE/' | sort
}

qemu_options_of_readme() {
	# shellcheck disable=SC2016 # backquotes of Markdown
	sed -n '/^## In place of QEMU/,/^## /p' "$SOURCE_DIR/README.md" |
		sed -nE 's/^\| `(-[A-Za-z])( [A-Z]+)?` \|.*/\1\2/p' | sed 's/ .*/ VALUE/' | sort
}

options_of_readme() {
	# shellcheck disable=SC2016 # backquotes of Markdown
	sed -nE 's/^\| `(-[A-Za-z])`, `(--[a-z]+).*/\1 \2/p; s/^\| `(--[a-z-]+).*/- \1/p' \
		"$SOURCE_DIR/README.md" | sort
}

# What getopt_long itself knows: of the one, the letters; of the other, the words without a letter.
options_of_program() {
	sed -nE 's/.*short_options\[\] = "(.*)";/\1/p' "$CODE" | tr -d ':+' | fold -w 1 | sort
	sed -nE 's/.*\{"([a-z-]+)", [a-z]+_argument, NULL, [A-Z_]+\},/- --\1/p' "$CODE" | sort
}

documents_agree() { # LEAST-NUMBER-OF-OPTIONS
	local short long help synopsis
	help=$(options_of_help)
	[ "$(wc -l <<<"$help")" -ge "$1" ]
	diff <(echo "$help") <(options_of_manual)
	diff <(sed -n 's/^-\([^ ]\).*/\1/p' <<<"$help" | sort; grep '^- ' <<<"$help") <(options_of_program)
	while read -r short long; do
		# Whatever else is wrong with the command line, the option is known.
		if [ "$short" != - ]; then
			run timeout 10 "$PROGRAM" "$short" 1 --no-such-option
			[[ $output != *"unknown option '$short'"* ]]
		fi
		run timeout 10 "$PROGRAM" "$long" 1 --no-such-option
		[[ $output != *"option '$long'"* ]]
	done <<<"$help"
	# Each takes a value in the manual page just if it takes one in --help.
	diff <("$PROGRAM" --help |
		sed -nE 's/^  -([A-Za-z]), --[a-z]+ [A-Z].*/\1/p; s/^      (--[a-z-]+) [A-Z].*/\1/p' | sort) \
		<(manual_section OPTIONS |
			sed -nE 's/^\.It Fl ([A-Za-z]) Ar .*/\1/p; s/^\.It Fl Fl ([a-z-]+) Ar .*/--\1/p' | sort)
	synopsis=$(manual_synopsis "$(basename "$PROGRAM")")
	while read -r short long; do
		short=${short#-}
		if [ -z "$short" ]; then
			grep -qE "Fl Fl ${long#--}( |$)" <<<"$synopsis"
			continue
		fi
		grep -qE "Fl ([a-zA-Z]*$short|[a-zA-Z] \| $short)" <<<"$synopsis" ||
			grep -qE "Fl (.* )?Fl $short |\| $short|Fl [a-zA-Z]*$short" <<<"$synopsis"
	done <<<"$help"
	# A terminal of 90 columns, and standard output.
	[ -z "$("$PROGRAM" --help | awk 'length > 90')" ]
	[ -z "$("$PROGRAM" --help 2>&1 >/dev/null)" ]
}

@test "the server's help, manual page and code have the same options" {
	select_program tm_ivshmem_server
	documents_agree 18
}

@test "the client's help, manual page and code have the same options" {
	select_program ivshmem_client
	documents_agree 5
}

@test "the README lists the server's options" {
	select_program tm_ivshmem_server
	diff <(options_of_help) <(options_of_readme)
}

@test "by the name of QEMU's server, too: help, manual page, README and code" {
	select_program tm_ivshmem_server
	help=$(qemu_options_of_help)
	[ "$(wc -l <<<"$help")" = 9 ]
	diff <(echo "$help") <(qemu_options_of_manual)
	diff <(echo "$help") <(qemu_options_of_readme)
	diff <(echo "${help// VALUE/:}") \
		<(sed -nE 's/.*qemu_letters\[\] = ":(.*)";/\1/p' "$CODE" | sed 's/[A-Za-z]/\n-&/g' |
			sed '/^$/d' | sort)
	diff <(cut -c 2 <<<"$help") \
		<(manual_synopsis ivshmem-server | grep -o 'Fl [A-Za-z]*' | cut -c 4- | fold -w 1 | sort)
	[ -z "$(as_qemu --help | awk 'length > 90')" ]
	[ -z "$(as_qemu --help 2>&1 >/dev/null)" ]
	# What the README says is our own word for each is one of our options.
	# shellcheck disable=SC2016 # backquotes of Markdown
	ours=$(sed -n '/^## In place of QEMU/,/^## /p' "$SOURCE_DIR/README.md" |
		sed -nE 's/^\| .* \| `(-[A-Za-z]).*` \| .*/\1/p')
	[ "$(wc -l <<<"$ours")" -ge 9 ]
	while read -r option; do
		options_of_help | grep -q "^$option "
	done <<<"$ours"
}

@test "the client's commands and words stand in its help and its manual page" {
	select_program ivshmem_client
	commands=$(sed -nE '/ commands\[\] = \{/,/^\};/s/"/\n/gp' "$CODE" | grep -xE '[a-z]+')
	[ "$(wc -l <<<"$commands")" -eq 6 ]
	for command in $commands; do
		"$PROGRAM" --help | grep -q "^  $command "
		grep -q "^\.It Cm $command\b" "$PAGE"
		grep -q "^| \`$command\b" "$SOURCE_DIR/README.md"
	done
	for word in dump 'int ID VECTOR' 'int ID all' 'int all' help quit; do
		"$PROGRAM" --help | tr '\n' ' ' | grep -q "${word}[,.]"
		manual_text "$PAGE" | sed -n '/^DIALOG/,/^[E]/p' | tr 'IDVECTOR' 'idvector' |
			grep -q "^     $(tr 'IDVECTOR' 'idvector' <<<"$word")\b"
		grep -q "^| none .*\`$word\`" "$SOURCE_DIR/README.md"
	done
	names=$(sed -nE 's/.*environment_set\("([A-Z_]+)".*/\1/p' "$SOURCE_DIR/client/run.c")
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
		grep -q "\"$text\"" "$SOURCE_DIR/server/options.c"
		"$SERVER" --help | grep -q "default $text"
		as_qemu --help | grep -q "default $text"
		grep -q "default \`$text\`" "$SOURCE_DIR/README.md"
	done
	for text in 4M /var/run/ivshmem-server.pid; do
		as_qemu --help | tr -s '\n ' ' ' | grep -q "default $text"
		grep -q "default.*$text" "$SOURCE_DIR/README.md"
		tr '\n' ' ' <"$SOURCE_DIR/tm_ivshmem_server.8" | grep -q "default \(.Pa \)\?$text"
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
	run grep -r @SBINDIR@ "$TEST_DIR/root/opt/fam/lib/systemd"
	[ "$status" -eq 1 ]
	[ -s "$TEST_DIR/root/opt/fam/lib/systemd/system/tm_ivshmem_server@.socket" ]
	make -C "$SOURCE_DIR" -s uninstall DESTDIR="$TEST_DIR/root" PREFIX=/opt/fam
	[ -z "$(find "$TEST_DIR/root" ! -type d)" ]
}

@test "install-ivshmem-server adds QEMU's name, nothing else does, and uninstall removes it" {
	root=$TEST_DIR/root2
	install=(make -C "$SOURCE_DIR" -s DESTDIR="$root" PREFIX=/opt/fam)
	"${install[@]}" install
	[ -z "$(find "$root" -name 'ivshmem-server*')" ]
	"${install[@]}" install-ivshmem-server
	"$root/opt/fam/bin/ivshmem-server" --help | grep -q '^Usage: ivshmem-server '
	# The page is that of the server, as man finds it.
	[ "$(cat "$root/opt/fam/share/man/man8/ivshmem-server.8")" = ".so man8/tm_ivshmem_server.8" ]
	sed -n '/^\.Sh NAME/,/^\.Sh SYN/p' "$SOURCE_DIR/tm_ivshmem_server.8" | grep -qx '.Nm ivshmem-server'
	"${install[@]}" install-ivshmem-server
	"${install[@]}" uninstall
	[ -z "$(find "$root" ! -type d)" ]
	# Another program of that name is neither replaced nor removed.
	echo another >"$root/opt/fam/bin/ivshmem-server"
	run "${install[@]}" install-ivshmem-server
	[ "$status" -ne 0 ]
	[[ $output == *'is another program'* ]]
	"${install[@]}" uninstall
	[ "$(cat "$root/opt/fam/bin/ivshmem-server")" = another ]
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
