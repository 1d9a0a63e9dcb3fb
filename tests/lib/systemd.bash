# shellcheck shell=bash
# A real systemd: one boots in a container whose files are an overlay of this machine's, so that what
# is installed there is gone afterwards. Loaded by the .bats files that want one.
#
#   $ROOT    the container's files

setup() {
	container_make
}

# Makes what is in $ROOT; skips the test where that is not possible.
container_make() {
	need_root
	need_tool systemd-nspawn
	upper=$TEST_DIR/upper ROOT=$TEST_DIR/root
	mkdir -p "$upper" "$ROOT"
	mount -t tmpfs tmpfs "$upper" || skip "cannot mount a tmpfs"
	mkdir "$upper/files" "$upper/work"
	mount -t overlay -o "lowerdir=/,upperdir=$upper/files,workdir=$upper/work" overlay "$ROOT" ||
		skip "cannot mount an overlay"
}

teardown() {
	umount "$ROOT" "$upper" 2>/dev/null || true
}

# A container needs cgroups where its systemd looks for them; since 258 only those of version 2 count.
need_cgroups() {
	local at=/sys/fs/cgroup
	if [ "$(stat -f -c %T $at 2>/dev/null)" != cgroup2fs ]; then
		[ "$(systemctl --version | awk 'NR == 1 { print int($2) }')" -lt 258 ] ||
			skip "no cgroup2 is mounted at $at, which this systemd needs"
		[[ $(stat -f -c %T $at/unified $at/systemd 2>/dev/null) = *cgroup* ]] ||
			skip "no cgroups are mounted at $at"
	fi
}

# Installs everything in the container.
install_there() {
	make -C "$SOURCE_DIR" -s install DESTDIR="$ROOT" PREFIX=/usr
	mkdir -p "$ROOT/etc/tm_ivshmem_server"
	# A server built with sanitizers looks for leaks by ptrace, which the unit forbids.
	mkdir -p "$ROOT/etc/systemd/system/tm_ivshmem_server@.service.d"
	printf '[Service]\nEnvironment=ASAN_OPTIONS=detect_leaks=0\n' \
		>"$ROOT/etc/systemd/system/tm_ivshmem_server@.service.d/leaks.conf"
}

# A cgroup for this test's container alone, in each hierarchy that systemd uses: a container has that in
# which it was started, and two in one would take each other's processes for their own.
container_cgroups() {
	local at path
	for at in /sys/fs/cgroup /sys/fs/cgroup/unified /sys/fs/cgroup/systemd; do
		case $(stat -f -c %T "$at" 2>/dev/null) in
		cgroup2fs) path=$(sed -n 's/^0:://p' /proc/self/cgroup) ;;
		cgroupfs) path=$(sed -n 's/^[0-9]*:name=systemd://p' /proc/self/cgroup) ;;
		*) continue ;;
		esac
		# What is mounted may be another part than the one that we are in.
		[[ $path != /..* ]] && [ -d "$at$path" ] || path=/
		echo "$at${path%/}/tm$$"
	done
}

# Runs a command there, and removes them once the last process has gone.
in_cgroups() { # WORD...
	local cgroups cgroup status=0
	mapfile -t cgroups < <(container_cgroups)
	(
		for cgroup in "${cgroups[@]}"; do
			mkdir -p "$cgroup" && echo "$BASHPID" >"$cgroup/cgroup.procs" || exit
		done
		exec "$@"
	) || status=$?
	for _ in {1..50}; do
		find "${cgroups[@]}" -depth -type d -exec rmdir {} \; 2>/dev/null || true
		find "${cgroups[@]}" -maxdepth 0 2>/dev/null | grep -q . || break
		sleep 0.1
	done
	return "$status"
}

# --- for the script: the functions of this part are there, and `no` and `eventually` of common.bash

# Whether a unit is up, and neither starts nor reloads.
unit_settled() { # UNIT SYSTEMCTL...
	[ "$("${@:2}" is-active "$1")" = active ]
}

# Whether another process than this one is the unit's, and ready.
unit_succeeded() { # PROCESS UNIT SYSTEMCTL...
	[ "$("${@:3}" show -P MainPID "$2")" != "$1" ] && unit_settled "${@:2}"
}

# Kills the process of a unit, and waits until a successor is ready.
unit_dies() { # UNIT [SYSTEMCTL...]
	local unit=$1 process
	shift
	[ $# -gt 0 ] || set -- systemctl
	process=$("$@" show -P MainPID "$unit")
	[ "$process" -gt 0 ] || no "$unit has no process" || return
	kill -KILL "$process"
	eventually unit_succeeded "$process" "$unit" "$@"
}

# Whether the journal has this text of a unit.
unit_logged() { # UNIT TEXT
	journalctl --sync
	[[ $(journalctl -b -o cat --no-pager -u "$1") = *"$2"* ]]
}

# Reloads a unit, and waits until its server has restarted in place, for the first time.
unit_reloads() { # UNIT
	systemctl reload "$1"
	eventually unit_logged "$1" 'restarted in place'
	eventually unit_settled "$1" systemctl
}

# ---

# Boots the container, runs the script there as a service, and prints what it printed. The script ends with
# the first command that fails, if it does not say otherwise.
in_container() { # SCRIPT
	{
		printf '#!/bin/bash\nset -e\n'
		declare -f no eventually unit_settled unit_succeeded unit_dies unit_logged unit_reloads
		cat "$1"
	} >"$ROOT/script"
	chmod 755 "$ROOT/script"
	cat >"$ROOT/etc/systemd/system/script.service" <<-END
		[Unit]
		After=basic.target
		Requires=basic.target
		IgnoreOnIsolate=yes
		[Service]
		Type=oneshot
		ExecStart=/script
		StandardOutput=append:/output
		StandardError=append:/output
		ExecStopPost=/bin/systemctl --no-block poweroff
	END
	in_cgroups timeout "${CONTAINER_SECONDS:-300}" systemd-nspawn --quiet --directory="$ROOT" \
		--register=no --keep-unit --machine="tm$$" --private-network --boot \
		systemd.unit=script.service \
		</dev/null >"$TEST_DIR/console" 2>&1 || cat "$TEST_DIR/console"
	cat "$ROOT/output"
}

# Boots a container in which those of the tests of build/tests/systemd/takeover that have these names
# must pass.
tests_there() { # NAME...
	local name
	need_mounted_root
	need_cgroups
	make -C "$SOURCE_DIR" -s build/tests/systemd/takeover
	install "$SOURCE_DIR/build/tests/systemd/takeover" "$ROOT/takeover"
	{
		echo 'set +e' # one that fails keeps no other from running
		echo "export ASAN_OPTIONS=detect_leaks=0 CMOCKA_MESSAGE_OUTPUT=TAP SEED=${SEED-}"
		printf '/takeover %s || journalctl -b -p warning -n 100 -o cat --no-pager -u "tm_ivshmem_server@*"\n' "$@"
	} >"$TEST_DIR/script"
	run in_container "$TEST_DIR/script"
	# shellcheck disable=SC2154 # run sets it
	echo "$output"
	grep '^# ' <<<"$output" | grep -v ' - tests$' >&3 || true
	for name in "$@"; do
		if grep -qiE "^(not )?ok [0-9]+ .*# skip" <<<"$output"; then
			skip "$(sed -n 's/^# skipped: //p' <<<"$output")"
		fi
		grep -qxE "ok [0-9]+ - $name" <<<"$output" || no "$name has not passed"
	done
}
