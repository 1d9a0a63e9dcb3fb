#!/usr/bin/env bats
# --help, the manual pages, the README and the pages in doc/ tell the same story, and it is that of the
# programs.

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

# The selected program by the name of QEMU's.
as_qemu() { # ARGUMENT...
	local name=ivshmem-${PROGRAM##*_}
	ln -sf "$(realpath "$PROGRAM")" "$TEST_DIR/$name"
	"$TEST_DIR/$name" "$@"
}

# The options that each names for that: "-F", or "-l VALUE" if it takes one.
qemu_options_of_help() {
	as_qemu -h | sed -nE 's/^  (-[A-Za-z])(, --help)?( [A-Z]+)?(\[.*\])?  .*/\1\3/p' |
		sed 's/ .*/ VALUE/' | sort
}

qemu_options_of_manual() {
	manual_section 'AS IVSHMEM-[SC]' |
		sed -nE 's/^\.It Fl ([A-Za-z])( Ar [a-z]+)?( , Fl Fl help)?$/-\1\2/p' |
		sed 's/ .*/ VALUE/' | sort
}

qemu_options_of_doc() {
	# shellcheck disable=SC2016 # backquotes of Markdown
	sed -nE 's/^\| `(-[A-Za-z])( [A-Z]+)?` \|.*/\1\2/p' "$SOURCE_DIR/doc/qemu-server.md" |
		sed 's/ .*/ VALUE/' | sort
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

qemu_documents_agree() { # NAME NUMBER-OF-OPTIONS
	help=$(qemu_options_of_help)
	[ "$(wc -l <<<"$help")" = "$2" ]
	diff <(echo "$help") <(qemu_options_of_manual)
	diff <(echo "${help// VALUE/:}") \
		<(sed -nE 's/.*qemu_letters\[\] = ":(.*)";/\1/p' "$CODE" | sed 's/[A-Za-z]/\n-&/g' |
			sed '/^$/d' | sort)
	diff <(cut -c 2 <<<"$help") \
		<(manual_synopsis "$1" | grep -o 'Fl [A-Za-z]*' | cut -c 4- | fold -w 1 | sort)
	[ -z "$(as_qemu --help | awk 'length > 90')" ]
	[ -z "$(as_qemu --help 2>&1 >/dev/null)" ]
}

@test "by the name of QEMU's client, too: help, manual page and code" {
	select_program ivshmem_client
	qemu_documents_agree ivshmem-client 3
	for word in dump 'int ID VECTOR' 'int ID all' 'int all' help '?' quit; do
		as_qemu --help | tr '\n' ' ' | grep -qF "$word"
	done
	as_qemu --help | grep -q 'default /tmp/ivshmem_socket'
}

@test "by the name of QEMU's server, too: help, manual page, doc/ and code" {
	select_program tm_ivshmem_server
	qemu_documents_agree ivshmem-server 9
	diff <(echo "$help") <(qemu_options_of_doc)
	# What the page says is our own word for each is one of our options.
	# shellcheck disable=SC2016 # backquotes of Markdown
	ours=$(sed -nE 's/^\| .* \| `(-[A-Za-z]).*` \| .*/\1/p' "$SOURCE_DIR/doc/qemu-server.md")
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
		grep -q "^| \`$command\b" "$SOURCE_DIR/doc/programs.md"
	done
	for word in dump 'int ID VECTOR' 'int ID all' 'int all' help quit; do
		"$PROGRAM" --help | tr '\n' ' ' | grep -q "${word}[,.]"
		manual_text "$PAGE" | sed -n '/^DIALOG/,/^[E]/p' | tr 'IDVECTOR' 'idvector' |
			grep -q "^     $(tr 'IDVECTOR' 'idvector' <<<"$word")\b"
		grep -q "^| none .*\`$word\`" "$SOURCE_DIR/doc/programs.md"
	done
	names=$(sed -nE 's/.*environment_set\("([A-Z_]+)".*/\1/p' "$SOURCE_DIR/client/run.c")
	[ "$(wc -l <<<"$names")" -eq 6 ]
	while read -r name; do
		grep -qx "\.It Ev $name" "$PAGE"
	done <<<"$names"
}

# Whatever link of the pages in a folder leads nowhere, or to no heading.
broken_links() { # FOLDER PAGE...
	(cd "$1" && shift && perl -e '
		my ($link, %anchors) = qr/\[[^\]]*\]\(([^)\s]*)\)/;
		sub text { # of a page, without what is code
			open(my $file, "<", $_[0]) or die "$_[0]: $!\n";
			my $text = join("", <$file>) =~ s/^```.*?^```$//gmsr;
		}
		sub anchor { # as GitHub makes it of a heading
			my ($page, $wanted) = @_;
			$anchors{$page} //= { map { tr/`//d; s/\[([^\]]*)\]\([^)]*\)/$1/g; s/[^\w\s-]//g;
				tr/ /-/; (lc $_ => 1) } text($page) =~ /^#+ (.*)$/gm };
			$anchors{$page}{$wanted};
		}
		for my $page (@ARGV) {
			my ($folder) = $page =~ m{^(.*/)?[^/]*$};
			for my $to (text($page) =~ s/`[^`]*`//gr =~ /$link/g) {
				next if $to =~ /^https?:/;
				my ($path, $heading) = $to =~ /^([^#]*)#?(.*)$/;
				my $file = $path eq "" ? $page : ($folder // "") . $path;
				-e $file && ($heading eq "" || anchor($file, $heading)) or print "$page: $to\n";
			}
		}' "$@")
}

pages() { # FOLDER
	(cd "$1" && printf '%s\n' README.md */README.md doc/*.md)
}

@test "links in the pages lead somewhere, and to every page of doc/" {
	mapfile -t pages < <(pages "$SOURCE_DIR")
	[ "${#pages[@]}" -gt 12 ]
	run broken_links "$SOURCE_DIR" "${pages[@]}"
	echo "$output"
	[ "$status" -eq 0 ]
	[ -z "$output" ]
	for page in "$SOURCE_DIR"/doc/*.md; do
		grep -q "](doc/$(basename "$page")" "$SOURCE_DIR/README.md"
	done
	# It would have found one: of a page, of a heading, beside one that is there.
	mkdir "$TEST_DIR/doc"
	# shellcheck disable=SC2016 # backquotes of Markdown
	printf '%s\n' '# A *page*, `two`' '[a](doc/b.md#b-c) [it](#a-page-two) `[no](link)`' \
		'[b](doc/b.md#c) [c](c.md) [d](#d)' >"$TEST_DIR/README.md"
	printf '%s\n' '## B c' '```' '[no](link)' '# no heading' '```' '![d](../README.md) [e](e.svg)' \
		>"$TEST_DIR/doc/b.md"
	run broken_links "$TEST_DIR" README.md doc/b.md
	diff - <(echo "$output") <<-'END'
		README.md: doc/b.md#c
		README.md: c.md
		README.md: #d
		doc/b.md: e.svg
	END
}

@test "the README is a front page" {
	[ "$(wc -l <"$SOURCE_DIR/README.md")" -le 300 ]
}

@test "hazards have numbers that the page has" {
	last=$(sed -n '/^## What a server must never do/,/^## /s/^\([0-9]*\)\. .*/\1/p' \
		"$SOURCE_DIR/doc/compatibility.md" | tail -n 1)
	[ "$last" = 10 ]
	cd "$SOURCE_DIR"
	while read -r number; do
		[ "$number" -le "$last" ]
	done < <(grep -rhoE '\(hazards? [0-9]+' ./*.c server client tests --include='*.[ch]' | grep -oE '[0-9]+$')
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
	select_program tm_ivshmem_server
	for text in /tmp/ivshmem_socket ivshmem; do
		grep -q "\"$text\"" "$SOURCE_DIR/server/options.c"
		"$SERVER" --help | grep -q "default $text"
		as_qemu --help | grep -q "default $text"
		grep -q "default \`$text\`" "$SOURCE_DIR/README.md"
	done
	for text in 4M /var/run/ivshmem-server.pid; do
		as_qemu --help | tr -s '\n ' ' ' | grep -q "default $text"
		grep -q "default.*$text" "$SOURCE_DIR/doc/qemu-server.md"
		tr '\n' ' ' <"$SOURCE_DIR/tm_ivshmem_server.8" | grep -q "default \(.Pa \)\?$text"
	done
	grep -q '"/tmp/ivshmem_socket"' "$SOURCE_DIR/client/ivshmem_client.c"
	"$SOURCE_DIR/client/ivshmem_client" --help | grep -q 'default /tmp/ivshmem_socket'
}

# Messages that the pages quote, one a line.
quoted_messages() { # FOLDER
	# shellcheck disable=SC2016 # backquotes of Markdown
	{
		# Of tables, what a reader sees; what systemd says of a server is systemd's.
		sed -nE '/^## The server at its start/,$s/^\| ([^|]*) \|.*/\1/p' "$1/doc/troubleshooting.md" |
			sed "/^systemd:/d; s/; in systemd's log,.*//" | grep -o '`[^`]*`'
		grep -ohE '`(ID [0-9N]+|lines dropped|restarted in place|standby of) [^`]*`' "$1"/doc/*.md
	} | tr -d '`'
	grep -hE '^ID [0-9]+ ' "$1"/doc/*.md
	sed -n 's/^tm_ivshmem_server: serving/serving/p' "$1/README.md"
	sed -n '/^\.Sh DIAGNOSTICS/,/^\.Sh/s/^\.It "\(.*\)"$/\1/p' "$1/tm_ivshmem_server.8" \
		"$1/client/ivshmem_client.1"
}

# Those of the lines that are no message of the source. A number, a path and a word in capitals stand for
# what a format leaves open; so may the text of another string or of an errno. "..." leaves something out.
messages_unsaid() { # SOURCE...
	perl -e '
		my ($spec, $literal) = (qr/%[-+ #0]*[0-9.*]*(?:hh?|ll?|[jzt])?[a-zA-Z]/, qr/"(?:[^"\\\n]|\\.)*"/);
		my $code = join("", map { open(my $file, "<", $_) or die "$_: $!\n"; <$file> } @ARGV);
		my @said = map { local $! = $_; "$!" } 1 .. 133;
		$code =~ s{/\*.*?\*/}{}gs;
		$code =~ s/%"\s*PRI\w+(\s*")?/defined $1 ? "%s" : "%s\""/ge;
		# Strings that stand one behind the other are one; a name between or behind them is left open.
		while ($code =~ /($literal(?:\s*_?[A-Z_]+(?=[\s,)])|\s*$literal)*)/g) {
			my $text = $1 =~ s/^"//r =~ s/"\s*([A-Z_]+)\s*"/%s/gr =~ s/"\s*"//gr;
			push(@said, $text =~ s/"\s*[A-Z_]+$/%s/r =~ s/"$//r =~ s/\\(.)/$1/gr);
		}
		sub pattern {
			join("", map {
				my ($word, $one) = (quotemeta, /^(.*\w)s$/ ? quotemeta($1) : undef);
				m{^/|^[A-Z]+$|\d} ? "(?:$word|$spec)" : defined $one ? "(?:$word|$one$spec)" :
					/^[a-z]+$/ ? "$word(?:$spec)?" : $word;
			} @_);
		}
		sub is_said { # whether it is the first part, the words
			my ($first, @words) = @_;
			for my $n (reverse 1 .. @words) {
				my ($part, $rest) = (join("", @words[0 .. $n - 1]), $n < @words);
				my $pattern = ($first ? "(?<![A-Za-z])" : "(?:^|$spec) *") .
					pattern(@words[0 .. $n - 1]) . ($rest ? " *(?:\$|$spec)" : "(?![A-Za-z])");
				return 1 if ($part !~ /[a-z]/ || grep { $_ =~ $pattern } @said) &&
					(!$rest || is_said(0, @words[$n .. $#words]));
			}
			return 0;
		}
		while (my $line = <STDIN>) {
			for my $part (split(/\.\.\.|REASON/, $line)) {
				$part =~ s/^[,:; ]+|[,:;\s]+$//g;
				$part =~ s/^warning: //;
				next if $part !~ /[a-z]/ || is_said(1, grep { length } split(/( |[,:;()\x27"])/, $part));
				print $line;
				last;
			}
		}' "$@"
}

@test "messages that the pages quote are those of the programs" {
	sources=("$SOURCE_DIR"/*.c "$SOURCE_DIR"/{server,client}/*.[ch])
	quoted_messages "$SOURCE_DIR" >"$TEST_DIR/quoted"
	[ "$(wc -l <"$TEST_DIR/quoted")" -ge 90 ]
	run messages_unsaid "${sources[@]}" <"$TEST_DIR/quoted"
	echo "$output"
	[ "$status" -eq 0 ]
	[ -z "$output" ]
	# It would have found one: with another word at the start, in what a format leaves open, and at the end.
	run messages_unsaid "${sources[@]}" <<-'END'
		PATH is served by another server, process N
		PATH is served by a different server, process N
		PATH is occupied by another server, process N
		lines dropped here, since nobody looked at this log: N
		cannot map 4K of a PATH
		ID N left: REASON
		ID N went: REASON
	END
	echo "$output"
	diff - <(echo "$output") <<-'END'
		PATH is served by a different server, process N
		PATH is occupied by another server, process N
		lines dropped here, since nobody looked at this log: N
		cannot map 4K of a PATH
		ID N went: REASON
	END
}

# The documents of a folder that lack a number which the code has, as "NUMBER in FILE: TEXT".
numbers_missing() { # FOLDER
	local name code number file text value
	while IFS='|' read -r name code file text; do
		number=$(sed -nE "s/^#define $name +\(?([0-9]+).*/\1/p" "$SOURCE_DIR/$code")
		[ -n "$number" ] || echo "$name is not in $code"
		value=$(eval "echo $(sed "s/N\([-+][0-9]*\)*/\$((&))/; s/N/$number/g" <<<"$text")")
		tr -s '\n ' ' ' <"$1/$file" | grep -qF -- "$value" || echo "$number in $file: $value"
	done <<-'END'
		SYNC_MAX|server/options.c|README.md|at this interval, 1 to N.
		SYNC_MAX|server/options.c|tm_ivshmem_server.8|at this interval, from 1 to N.
		VECTORS_MAX|server/options.h|README.md|of each node, 0 to N
		VECTORS_MAX|server/options.h|server/options.c|of each node, 0 to N
		VECTORS_MAX|server/options.h|tm_ivshmem_server.8|of each node, from 0 to N
		VECTORS_MAX|client/mesh.h|client/ivshmem_client.1|to each node, from 0 to N.
		POLL_MAX|client/ivshmem_client.c|client/ivshmem_client.1|milliseconds, from 1 to N
		IDS|server/ledger.h|doc/compatibility.md|go from 0 to N-1.
		IDS|server/ledger.h|tm_ivshmem_server.8|go from 0 to N-1.
		IDS|client/mesh.h|client/ivshmem_client.1|from 0 to N-1.
		IDS|client/mesh.h|client/ivshmem_protocol.7|from 0 to N-1.
		DEATHS|server/ledger.h|doc/troubleshooting.md|has died N times in 10 s
		DEATHS|server/ledger.h|tm_ivshmem_server.8|has died N times in 10 s
	END
	# Of the store: what the server keeps for itself there, and room for nodes that leave.
	number=$(sed -nE 's/^#define STORE_MORE \(OWNS \+ ([0-9]+)\)$/\1/p' "$SOURCE_DIR/server/supervisor.c")
	number=$((number + $(sed -nE 's/.* own_names\[OWNS\] = \{(.*)\};/\1/p' \
		"$SOURCE_DIR/server/supervisor.c" | tr ',' '\n' | wc -l)))
	grep -qF "| N + $number: " "$1/doc/systemd.md" || echo "$number in doc/systemd.md"
	tr '\n' ' ' <"$1/tm_ivshmem_server.8" | grep -qF "the number of nodes and $number " ||
		echo "$number in tm_ivshmem_server.8"
}

@test "numbers in the documents are those of the code" {
	run numbers_missing "$SOURCE_DIR"
	echo "$output"
	[ "$status" -eq 0 ]
	[ -z "$output" ]
	# It would have found others.
	mkdir -p "$TEST_DIR/other/doc" "$TEST_DIR/other/client" "$TEST_DIR/other/server"
	(cd "$SOURCE_DIR" && for file in README.md *.8 doc/*.md client/*.[17] server/options.c; do
		sed 's/[0-9]/&1/g' "$file" >"$TEST_DIR/other/$file"
	done)
	run numbers_missing "$TEST_DIR/other"
	echo "$output"
	[ "$(wc -l <<<"$output")" = 15 ]
}

# What a picture says, and of how many shapes it is: all versions of a tool draw these alike.
shapes() { # SVG
	tr '\n' ' ' <"$1" | sed -E 's,<(title|desc)>[^<]*</,<,g; s/<(path|polygon)/\n\1\n&/g; s/<[^>]*>/\n/g' |
		grep '[^[:space:]]' | sort
}

@test "the pictures are those that make pictures draws" {
	command -v fossil >/dev/null || skip "fossil, which draws the mesh, is missing"
	command -v gnuplot >/dev/null || skip "gnuplot, which draws the chart, is missing"
	copy=$TEST_DIR/pictures
	mkdir -p "$copy/tests"
	cp -r "$SOURCE_DIR"/{Makefile,README.md,doc} "$copy"
	cp -r "$SOURCE_DIR/tests/bench" "$copy/tests"
	rm "$copy"/doc/*.svg
	MAKEFLAGS='' make -s -C "$copy" pictures
	for picture in mesh cost; do
		shapes "$copy/doc/$picture.svg" >"$copy/drawn"
		[ "$(wc -l <"$copy/drawn")" -ge 30 ]
		diff <(shapes "$SOURCE_DIR/doc/$picture.svg") "$copy/drawn"
		# A page shows it, and says in words what it shows.
		grep -rqE "^!\[[^]]{80,}\]\(([a-z]+/)?$picture\.svg\)$" "$copy/README.md" "$copy/doc"
	done
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
	doc=$TEST_DIR/root/opt/fam/share/doc/tm_ivshmem_server
	diff <(cd "$doc" && printf '%s\n' README.md doc/*) \
		<(cd "$SOURCE_DIR" && printf '%s\n' README.md doc/*.md doc/*.svg | sort)
	mapfile -t pages < <(cd "$doc" && printf '%s\n' README.md doc/*.md)
	run broken_links "$doc" "${pages[@]}"
	[ "$status" -eq 0 ]
	[ -z "$output" ]
	make -C "$SOURCE_DIR" -s uninstall DESTDIR="$TEST_DIR/root" PREFIX=/opt/fam
	[ -z "$(find "$TEST_DIR/root" ! -type d)" ]
	[ ! -e "$doc" ]
}

@test "install-ivshmem-server adds QEMU's names, nothing else does, and uninstall removes them" {
	root=$TEST_DIR/root2
	install=(make -C "$SOURCE_DIR" -s DESTDIR="$root" PREFIX=/opt/fam)
	"${install[@]}" install
	[ -z "$(find "$root" -name 'ivshmem-*')" ]
	"${install[@]}" install-ivshmem-server
	"$root/opt/fam/bin/ivshmem-server" --help | grep -q '^Usage: ivshmem-server '
	"$root/opt/fam/bin/ivshmem-client" --help | grep -q '^Usage: ivshmem-client '
	# The pages are those of server and client, as man finds them.
	[ "$(cat "$root/opt/fam/share/man/man8/ivshmem-server.8")" = ".so man8/tm_ivshmem_server.8" ]
	[ "$(cat "$root/opt/fam/share/man/man1/ivshmem-client.1")" = ".so man1/ivshmem_client.1" ]
	sed -n '/^\.Sh NAME/,/^\.Sh SYN/p' "$SOURCE_DIR/tm_ivshmem_server.8" | grep -qx '.Nm ivshmem-server'
	sed -n '/^\.Sh NAME/,/^\.Sh SYN/p' "$SOURCE_DIR/client/ivshmem_client.1" | grep -qx '.Nm ivshmem-client'
	"${install[@]}" install-ivshmem-server
	"${install[@]}" uninstall
	[ -z "$(find "$root" ! -type d)" ]
	# Another program of that name is neither replaced nor removed.
	for name in ivshmem-server ivshmem-client; do
		echo another >"$root/opt/fam/bin/$name"
		run "${install[@]}" install-ivshmem-server
		[ "$status" -ne 0 ]
		[[ $output == *"/$name is another program"* ]]
		"${install[@]}" uninstall
		[ "$(cat "$root/opt/fam/bin/$name")" = another ]
		rm "$root/opt/fam/bin/$name"
	done
	[ -z "$(find "$root" ! -type d)" ]
	# Nor is one that has come since.
	"${install[@]}" install-ivshmem-server
	rm "$root/opt/fam/bin/ivshmem-client"
	ln -s /usr/bin/another "$root/opt/fam/bin/ivshmem-client"
	"${install[@]}" uninstall
	[ "$(readlink "$root/opt/fam/bin/ivshmem-client")" = /usr/bin/another ]
	[ ! -e "$root/opt/fam/bin/ivshmem-server" ]
}

@test "dist packs what builds" {
	git -C "$SOURCE_DIR" rev-parse HEAD >/dev/null 2>&1 || skip "this is no git checkout"
	version=$("$SERVER" --version | cut -d ' ' -f 2)
	git clone -q "$SOURCE_DIR" "$TEST_DIR/clone"
	make -C "$TEST_DIR/clone" -s dist
	tar -xzf "$TEST_DIR/clone/tm_ivshmem_server-$version.tar.gz" -C "$TEST_DIR"
	make -C "$TEST_DIR/tm_ivshmem_server-$version" -s
	[ "$("$TEST_DIR/tm_ivshmem_server-$version/tm_ivshmem_server" --version)" = "tm_ivshmem_server $version" ]
}
