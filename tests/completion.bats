#!/usr/bin/env bats
# What bash completes: all that --help names and nothing else, files, sockets, groups.
# shellcheck disable=SC2034 # COMP_WORDS and the like are for the function

load lib/common
load lib/client

setup_more() {
	COMPLETION=$SOURCE_DIR/packaging/completion.bash
	mkdir "$WORK/bin"
	ln -s "$(realpath "$SERVER")" "$WORK/bin/tm_ivshmem_server"
	ln -s tm_ivshmem_server "$WORK/bin/ivshmem-server"
	ln -s "$(realpath "$SOURCE_DIR/client/ivshmem_client")" "$WORK/bin/ivshmem_client"
	ln -s ivshmem_client "$WORK/bin/ivshmem-client"
	PATH=$WORK/bin:$PATH
}

# What may come in place of the last word, sorted.
offered() { # WORD...
	bash -c '
		. "$0"
		COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMP_LINE="$*"
		COMP_POINT=${#COMP_LINE}
		[[ $(complete -p "$1") =~ "-F "([a-z_]+) ]]
		"${BASH_REMATCH[1]}" "$1" "${!#}" "${COMP_WORDS[$# - 2]}"
		[ ${#COMPREPLY[@]} = 0 ] || printf "%s\n" "${COMPREPLY[@]}"' "$COMPLETION" "$@" | sort -u
}

# The words of options that --help has at the beginning of its lines, sorted.
options_of() { # PROGRAM
	"$1" --help | sed -nE 's/^ +(-.*)/\1/p' | sed -E 's/  .*//' |
		grep -oE -e '(^|, )--?[A-Za-z][a-z-]*' | sed 's/^, //' | sort
}

# What becomes of lines when Tab is pressed at their end, in a real shell.
becomes() { # LINE LINE-AFTER...
	local i lines=() wanted=()
	need_tool python3
	for ((i = 1; i <= $#; i += 2)); do
		lines+=("${!i}")
	done
	for ((i = 2; i <= $#; i += 2)); do
		wanted+=("${!i}")
	done
	diff <(printf '%s\n' "${wanted[@]}") \
		<(printf '%s\n' "${lines[@]}" | python3 "$BATS_TEST_DIRNAME/lib/type.py" "$COMPLETION" 3>&-)
}

@test "every option of --help is completed, and nothing else" {
	local program least
	while read -r program least; do
		options=$(options_of "$program")
		[ "$(wc -l <<<"$options")" -ge "$least" ]
		diff <(echo "$options") <(offered "$program" -)
		diff <(grep '^--' <<<"$options") <(offered "$program" --)
		diff <(echo "$options") <(offered "$program" -v -)
	done <<-END
		tm_ivshmem_server 30
		ivshmem-server 10
		ivshmem_client 11
		ivshmem-client 4
	END
	is 'what is offered for -q' "$(offered tm_ivshmem_server --q)" ''
	# Where there is nothing else to type, before anything was typed.
	diff <(options_of tm_ivshmem_server) <(offered tm_ivshmem_server '')
}

@test "the client's commands are completed, after a socket or none, once, and their words" {
	commands=$(sed -nE '/ commands\[\] = \{/,/^\};/s/"/\n/gp' "$SOURCE_DIR/client/ivshmem_client.c" |
		grep -xE '[a-z]+' | sort)
	[ "$(wc -l <<<"$commands")" -ge 5 ]
	diff <(echo "$commands") <(offered ivshmem_client '' | grep -v /)
	diff <(echo "$commands") <(offered ivshmem_client -v "$SOCK" '')
	diff <(echo "$commands") <(offered ivshmem_client -S "$SOCK" '')
	diff <(echo "$commands") <(offered ivshmem_client --socket = "$SOCK" '')
	diff <(echo "$commands") <(offered ivshmem_client -D '')
	is 'after ring' "$(offered ivshmem_client ring 3 '')" all
	is 'after list' "$(offered ivshmem_client list '')" ''
	is 'after another' "$(offered ivshmem_client -v list l)" ''
	[[ $'\n'$(offered ivshmem_client run ivshm) == *$'\n'ivshmem_client* ]]
	is 'after status' "$(offered ivshmem_client status '')" $'--json\n--watch'
	is 'after status --' "$(offered ivshmem_client -S "$SOCK" status --json --w)" --watch
}

@test "values are completed as their kind wants: files, folders, sockets, groups, objects" {
	mkdir 'a folder' beside
	: >'a file'
	: >below
	truncate -s 4096 "/dev/shm/$SHM"
	start -A
	becomes 'tm_ivshmem_server --alloc' 'tm_ivshmem_server --allocate ' \
		'tm_ivshmem_server -f a\ fi' 'tm_ivshmem_server -f a\ file ' \
		'tm_ivshmem_server -vaf bel' 'tm_ivshmem_server -vaf below ' \
		'tm_ivshmem_server --file=bel' 'tm_ivshmem_server --file=below ' \
		'tm_ivshmem_server --default-file "a fi' 'tm_ivshmem_server --default-file "a file" ' \
		'tm_ivshmem_server --anonymous=b' 'tm_ivshmem_server --anonymous=beside/' \
		'tm_ivshmem_server -g roo' 'tm_ivshmem_server -g root ' \
		'tm_ivshmem_server --group=roo' 'tm_ivshmem_server --group=root ' \
		"tm_ivshmem_server -s ${SHM%?}" "tm_ivshmem_server -s $SHM " \
		'tm_ivshmem_server -n b' 'tm_ivshmem_server -n b' \
		'ivshmem-server -m b' 'ivshmem-server -m beside/' \
		"ivshmem-server -M ${SHM%?}" "ivshmem-server -M $SHM " \
		'ivshmem-server -S b' 'ivshmem-server -S be' \
		'ivshmem_client -S s' 'ivshmem_client -S sock ' \
		'ivshmem_client -vS s' 'ivshmem_client -vS sock ' \
		'ivshmem_client --socket=s' 'ivshmem_client --socket=sock ' \
		'ivshmem_client so' 'ivshmem_client sock ' \
		'ivshmem_client be' 'ivshmem_client beside/' \
		'ivshmem_client sock ri' 'ivshmem_client sock ring ' \
		'ivshmem_client run cat bel' 'ivshmem_client run cat below ' \
		"$WORK/bin/ivshmem_client ri" "$WORK/bin/ivshmem_client ring "
}

@test "the file stands where bash looks for it, by the name of each program, and needs nothing" {
	need_tool python3
	install=(make -C "$SOURCE_DIR" -s DESTDIR="$WORK/root" PREFIX=/usr)
	"${install[@]}" install-ivshmem-server
	for name in tm_ivshmem_server ivshmem-server ivshmem_client ivshmem-client; do
		COMPLETION=$WORK/root/usr/share/bash-completion/completions/$name
		[[ $(bash -euc '. "$0"; complete -p "$1"' "$COMPLETION" "$name") == *'-F '* ]]
	done
	# With the package that finds it there by itself, if it is here.
	loader=/usr/share/bash-completion/bash_completion
	[ -e "$loader" ] || skip "bash-completion is missing"
	COMPLETION=$WORK/loader
	echo "BASH_COMPLETION_USER_DIR=$WORK/root/usr/share/bash-completion; . $loader" >"$COMPLETION"
	becomes 'ivshmem_client wai' 'ivshmem_client wait ' \
		'tm_ivshmem_server --anon' 'tm_ivshmem_server --anonymous ' \
		'ivshmem-server --he' 'ivshmem-server --help '
}
