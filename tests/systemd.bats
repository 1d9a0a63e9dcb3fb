#!/usr/bin/env bats
# The unit under a real systemd: one boots in a container whose files are an overlay of this machine's.

load lib/common

setup() {
	need_root
	need_tool systemd-nspawn
	upper=$TEST_DIR/upper root=$TEST_DIR/root
	mkdir -p "$upper" "$root"
	mount -t tmpfs tmpfs "$upper" || skip "cannot mount a tmpfs"
	mkdir "$upper/files" "$upper/work"
	mount -t overlay -o "lowerdir=/,upperdir=$upper/files,workdir=$upper/work" overlay "$root" ||
		skip "cannot mount an overlay"
}

teardown() {
	umount "$root" "$upper" 2>/dev/null || true
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

# Boots the container, runs the script there as a service, and prints what it printed.
in_container() { # SCRIPT
	install -m 755 "$1" "$root/script"
	cat >"$root/etc/systemd/system/script.service" <<-END
		[Unit]
		After=basic.target
		Requires=basic.target
		[Service]
		Type=oneshot
		ExecStart=/script
		StandardOutput=append:/output
		StandardError=append:/output
		ExecStopPost=/bin/systemctl --no-block poweroff
	END
	timeout 120 systemd-nspawn --quiet --directory="$root" --register=no --keep-unit \
		--machine="tm$$" --private-network --boot systemd.unit=script.service \
		</dev/null >"$TEST_DIR/console" 2>&1 || cat "$TEST_DIR/console"
	cat "$root/output"
}

@test "the unit verifies and its exposure is at most 2.0" {
	make -C "$SOURCE_DIR" -s install DESTDIR="$root" PREFIX=/usr
	unit=$root/usr/lib/systemd/system/tm_ivshmem_server@.service
	cp "$unit" "$TEST_DIR/tm_ivshmem_server@fam.service"
	# The program and the manual page that the unit names are in the container.
	run systemd-analyze verify --man=no --root="$root" tm_ivshmem_server@fam.service
	echo "$output"
	[ "$status" -eq 0 ]
	[ -z "$output" ]
	run systemd-analyze security --no-pager --offline=true "$TEST_DIR/tm_ivshmem_server@fam.service"
	echo "$output"
	exposure=$(sed -n 's/.*Overall exposure level for .*: \([0-9.]*\) .*/\1/p' <<<"$output")
	[ "${exposure%.*}${exposure#*.}" -le 20 ]
}

@test "systemctl starts, reloads and stops an instance" {
	need_mounted_root
	need_cgroups
	make -C "$SOURCE_DIR" -s install DESTDIR="$root" PREFIX=/usr
	mkdir -p "$root/etc/tm_ivshmem_server"
	echo 'OPTIONS=-f /var/lib/tm_ivshmem_server/fam -m 2M -n 3' >"$root/etc/tm_ivshmem_server/fam.conf"
	# A server built with sanitizers looks for leaks by ptrace, which the unit forbids.
	mkdir -p "$root/etc/systemd/system/tm_ivshmem_server@.service.d"
	printf '[Service]\nEnvironment=ASAN_OPTIONS=detect_leaks=0\n' \
		>"$root/etc/systemd/system/tm_ivshmem_server@.service.d/leaks.conf"
	cat >"$TEST_DIR/script" <<-END
		#!/bin/sh
		cd /
		systemctl start tm_ivshmem_server@fam && echo started
		systemctl start tm_ivshmem_server@other && echo started other
		stat -c '%n %F %a %G %s' /run/tm_ivshmem_server/* /var/lib/tm_ivshmem_server/*
		pid=\$(systemctl show -P MainPID tm_ivshmem_server@fam)
		systemctl show -P LimitNOFILE tm_ivshmem_server@fam
		grep CapEff /proc/\$pid/status
		ivshmem_client /run/tm_ivshmem_server/fam.sock watch >/watched &
		sleep 1
		systemctl reload tm_ivshmem_server@fam && echo reloaded
		for i in 1 2 3 4 5 6 7 8 9 10; do
			journalctl -u tm_ivshmem_server@fam | grep -q 'restarted in place' && break
			sleep 1
		done
		journalctl -u tm_ivshmem_server@fam -o cat
		[ "\$pid" = "\$(systemctl show -P MainPID tm_ivshmem_server@fam)" ] && echo same pid
		systemctl is-active tm_ivshmem_server@fam
		ivshmem_client /run/tm_ivshmem_server/fam.sock list
		sleep 1
		kill \$!
		cat /watched
		systemctl stop tm_ivshmem_server@fam && echo stopped
		systemctl show -P Result tm_ivshmem_server@fam
		ls /run/tm_ivshmem_server /var/lib/tm_ivshmem_server
	END
	run in_container "$TEST_DIR/script"
	echo "$output"
	grep -qx started <<<"$output"
	grep -qx 'started other' <<<"$output"
	grep -qx '/run/tm_ivshmem_server/fam.sock socket 660 kvm 0' <<<"$output"
	grep -qx '/var/lib/tm_ivshmem_server/fam regular file 660 kvm 2097152' <<<"$output"
	grep -qx '/var/lib/tm_ivshmem_server/other regular file 660 kvm 1048576' <<<"$output"
	grep -qx 1048576 <<<"$output"
	grep -qP 'CapEff:\t0000000000000000' <<<"$output"
	grep -qx reloaded <<<"$output"
	grep -q 'restarted in place' <<<"$output"
	grep -qx 'same pid' <<<"$output"
	grep -qx active <<<"$output"
	# Before and after the restart: the newcomer finds who was there, and is told of to them.
	grep -qx 'peer 0 3' <<<"$output"
	grep -qx 'leave 1' <<<"$output"
	grep -qx stopped <<<"$output"
	grep -qx success <<<"$output"
}
