#!/usr/bin/env bats
# The unit under a real systemd. That its nodes outlive the server is in takeover-systemd.bats.

load lib/common
load lib/systemd

@test "the unit verifies and its exposure is at most 2.0" {
	install_there
	unit=$ROOT/usr/lib/systemd/system/tm_ivshmem_server@.service
	cp "$unit" "$TEST_DIR/tm_ivshmem_server@fam.service"
	# The program and the manual page that the unit names are in the container.
	run systemd-analyze verify --man=no --root="$ROOT" tm_ivshmem_server@fam.service
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
	install_there
	echo 'OPTIONS=-f /var/lib/tm_ivshmem_server/fam -m 2M -n 3' >"$ROOT/etc/tm_ivshmem_server/fam.conf"
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
