# shellcheck shell=bash
# Completion for bash of the server and the client, by all their names. What can be typed is asked of
# the program: its --help names the options, the kind of value that each takes, and the commands.

# Reads --help into the caller's variables: takes, for each option the word that stands for its value
# (PATH, DIR, ...), with a ? behind it where the value may be left out, or nothing; commands, for each
# command the words that may follow it.
_tm_ivshmem_help() { # PROGRAM
	local line word kind words
	while IFS= read -r line; do
		if [[ $line =~ ^\ +(-.*)$ ]]; then
			line=${BASH_REMATCH[1]%%  *} kind=''
			[[ ! $line =~ [\ =]([A-Z]+) ]] || kind=${BASH_REMATCH[1]}
			[[ $line != *'[='* ]] || kind+='?'
			read -ra words <<<"${line//,/}"
			for word in "${words[@]}"; do
				[[ ! $word =~ ^-[A-Za-z-]+ ]] || takes[${BASH_REMATCH[0]}]=$kind
			done
		elif [[ $line =~ ^\ \ ([a-z]+)(\ .*)?$ ]]; then
			word=${BASH_REMATCH[1]} line=${BASH_REMATCH[2]%%  *}
			read -ra words <<<"${line//[][,|]/ }"
			commands[$word]+=' '
			for line in "${words[@]}"; do
				# A second form of it, in the same line, begins with its name again.
				[ "$line" = "$word" ] || [[ ! $line =~ ^(--)?[a-z]+$ ]] ||
					commands[$word]+="$line "
			done
		fi
	done < <(LC_ALL=C "$1" --help 2>/dev/null </dev/null)
}

# Adds to COMPREPLY what a value may be that begins with a word.
_tm_ivshmem_values() { # KIND WORD
	local path paths=()
	case $1 in
	PATH | FILE) compopt -o default 2>/dev/null ;; # as Readline does it by itself
	DIR) compopt -o dirnames 2>/dev/null ;;
	SOCKET)
		compopt -o filenames 2>/dev/null
		mapfile -t paths < <(compgen -f -- "$2")
		# Where the units, and a server without options, listen.
		[ -n "$2" ] || paths+=(/run/tm_ivshmem_server/*.sock /tmp/ivshmem_socket)
		for path in "${paths[@]}"; do
			[ ! -S "$path" ] && [ ! -d "$path" ] || COMPREPLY+=("$path")
		done
		;;
	GROUP) mapfile -t COMPREPLY < <(compgen -g -- "$2") ;;
	NAME)
		for path in /dev/shm/"$2"*; do
			[ ! -f "$path" ] || COMPREPLY+=("${path##*/}")
		done
		;;
	ADDRESS)
		for path in /sys/bus/pci/devices/"$2"*; do
			[ "$(cat "$path/vendor" "$path/device" 2>/dev/null)" != $'0x1af4\n0x1110' ] ||
				COMPREPLY+=("${path##*/}")
		done
		;;
	PROGRAM) mapfile -t COMPREPLY < <(compgen -c -- "$2") ;;
	esac
}

# Finds in a word the option that the next word may be the value of: one in words, or the last of
# several letters, before which none takes a value. It goes to the caller's option.
_tm_ivshmem_option() { # WORD
	local i
	option=$1
	[[ $1 != --* ]] || return 0
	for ((i = 1; i < ${#1}; i++)); do
		option=-${1:i:1}
		[ -z "${takes[$option]-}" ] || break
	done
	[ "$i" -ge $((${#1} - 1)) ] || option=''
}

_tm_ivshmem() { # COMMAND WORD PREVIOUS
	local i word words=() option kind='' command='' rest=0 reached=''
	local -A takes=() commands=()
	COMPREPLY=()
	_tm_ivshmem_help "${1/#\~\//"$HOME/"}"
	if [[ $1 = *client ]]; then # it wants sockets that are there; the server makes its own
		for i in "${!takes[@]}"; do
			[ "${takes[$i]}" != PATH ] || takes[$i]=SOCKET
		done
	fi

	# Readline parts words at = and : as well, and wants what comes in place of the last part.
	for ((i = 1; i <= COMP_CWORD; i++)); do
		word=${COMP_WORDS[i]}
		if [ ${#words[@]} -gt 0 ] && [[ $word =~ ^[=:]+$ || ${COMP_WORDS[i - 1]} =~ ^[=:]+$ ]]; then
			words[-1]+=$word
		else
			words+=("$word")
		fi
	done
	word=${words[-1]}
	[ "$word" != "${COMP_WORDS[COMP_CWORD]}" ] || word=$2
	unset 'words[-1]'

	# What was typed before: kind is what it waits for, if anything.
	for i in "${words[@]}"; do
		if [ -n "$kind" ]; then
			kind=''
		elif [ -n "$command" ]; then
			rest=$((rest + 1))
		elif [[ $i = -* ]]; then
			_tm_ivshmem_option "$i"
			kind=${takes[${option:--}]-}
			[[ $kind != *'?' ]] || kind=''
			[[ $i$option != *-[SD]* && $i != --[sd]* ]] || reached=1
		elif [ -n "${commands[$i]-}" ]; then
			command=$i
		else
			reached=1
		fi
	done

	if [ -n "$kind" ]; then
		:
	elif [ "$command" = run ]; then
		kind=PROGRAM
		[ "$rest" = 0 ] || kind=FILE
	elif [ -n "$command" ]; then
		mapfile -t COMPREPLY < <(compgen -W "${commands[$command]}" -- "$word")
	elif [[ $word = --*=* ]]; then
		kind=${takes[${word%%=*}]-}
		kind=${kind%'?'} word=${word#*=}
	elif [[ $word = -* ]] || [ ${#commands[@]} = 0 ]; then
		mapfile -t COMPREPLY < <(compgen -W "${!takes[*]}" -- "$word")
	else
		# A socket may come before the command, once.
		[ -n "$reached" ] || _tm_ivshmem_values SOCKET "$word"
		mapfile -t -O ${#COMPREPLY[@]} COMPREPLY < <(compgen -W "${!commands[*]}" -- "$word")
	fi
	[ -z "$kind" ] || _tm_ivshmem_values "$kind" "$word"

	# Of a word with colons, what stands before its last part is there already.
	[[ $word != *:* ]] || COMPREPLY=("${COMPREPLY[@]#"${word%"$2"}"}")
}

complete -F _tm_ivshmem tm_ivshmem_server ivshmem-server ivshmem_client ivshmem-client
