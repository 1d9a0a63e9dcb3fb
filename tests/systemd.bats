#!/usr/bin/env bats
# The unit under a real systemd. That its nodes outlive the server is in takeover-systemd.bats.

load lib/common
load lib/systemd

@test "the unit verifies and its exposure is at most 2.0" {
	install_there
	unit=$ROOT/usr/lib/systemd/system/tm_ivshmem_server@.service
	cp "$unit" "$TEST_DIR/tm_ivshmem_server@fam.service"
	# The program and the manual page that the units name are in the container.
	run systemd-analyze verify --man=no --root="$ROOT" tm_ivshmem_server@fam.service \
		tm_ivshmem_server@fam.socket
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
	echo 'OPTIONS=-m 2M -n 3' >"$ROOT/etc/tm_ivshmem_server/fam.conf"
	echo 'OPTIONS=-m 2M -s fam' >"$ROOT/etc/tm_ivshmem_server/shm.conf"
	cat >"$TEST_DIR/script" <<-END
		cd /
		systemctl start tm_ivshmem_server@fam && echo started
		systemctl start tm_ivshmem_server@other tm_ivshmem_server@shm && echo started others
		stat -c '%n %F %a %G %s' /run/tm_ivshmem_server/* /var/lib/tm_ivshmem_server/* /dev/shm/fam
		pid=\$(systemctl show -P MainPID tm_ivshmem_server@fam)
		systemctl show -P LimitNOFILE tm_ivshmem_server@fam
		grep CapEff /proc/\$pid/status
		for folder in /run /run/tm_ivshmem_server /var/lib /var/lib/tm_ivshmem_server /etc; do
			nsenter --target \$pid --mount mktemp -d \$folder/try.XXXXXX >/tried 2>&1 &&
				rmdir \$(cat /tried) && echo "writes to \$folder"
		done
		ivshmem_client /run/tm_ivshmem_server/fam.sock watch >/watched &
		eventually grep -q '^id' /watched
		unit_reloads tm_ivshmem_server@fam && echo reloaded
		journalctl -u tm_ivshmem_server@fam -o cat
		[ "\$pid" = "\$(systemctl show -P MainPID tm_ivshmem_server@fam)" ] && echo same pid
		systemctl is-active tm_ivshmem_server@fam
		ivshmem_client /run/tm_ivshmem_server/fam.sock list
		eventually grep -qx 'leave 1' /watched
		kill \$!
		cat /watched
		systemctl stop tm_ivshmem_server@fam && echo stopped
		systemctl show -P Result tm_ivshmem_server@fam
		ls /run/tm_ivshmem_server /var/lib/tm_ivshmem_server
	END
	run in_container "$TEST_DIR/script"
	echo "$output"
	grep -qx started <<<"$output"
	grep -qx 'started others' <<<"$output"
	grep -qx '/run/tm_ivshmem_server/fam.sock socket 660 kvm 0' <<<"$output"
	grep -qx '/var/lib/tm_ivshmem_server/fam regular file 660 kvm 2097152' <<<"$output"
	grep -qx '/var/lib/tm_ivshmem_server/other regular file 660 kvm 1048576' <<<"$output"
	grep -qx '/dev/shm/fam regular file 660 kvm 2097152' <<<"$output"
	[[ $output != *'/var/lib/tm_ivshmem_server/shm '* ]]
	grep -qx 1048576 <<<"$output"
	[ "$(grep -c '^writes to ' <<<"$output")" -eq 2 ]
	grep -qx 'writes to /run/tm_ivshmem_server' <<<"$output"
	grep -qx 'writes to /var/lib/tm_ivshmem_server' <<<"$output"
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

@test "the journal has levels, and systemctl status what is served and to how many nodes" {
	need_mounted_root
	need_cgroups
	install_there
	echo 'OPTIONS=-m 2M -v' >"$ROOT/etc/tm_ivshmem_server/fam.conf"
	cat >"$TEST_DIR/script" <<-'END'
		unit=tm_ivshmem_server@fam
		memory=/var/lib/tm_ivshmem_server/fam
		socket=/run/tm_ivshmem_server/fam.sock
		has_status() {
			systemctl status $unit >/status
			grep -q "$1\"\$" /status
		}
		status() { # NAME NODES
			eventually has_status "$2"
			sed -n "s/^ *Status: /$1: /p" /status
		}
		lines() { # NAME OPTION...
			name=$1
			shift
			journalctl --sync
			journalctl -b --no-pager "$@" | sed "s/^/$name: /"
		}
		systemctl start $unit
		status began '0 nodes'
		ivshmem_client $socket watch >/watched &
		status joined '1 node'
		lines none -p warning -u 'tm_ivshmem_server@*' -o cat
		truncate -s 4M $memory
		! ivshmem_client $socket list
		truncate -s 2M $memory
		lines warnings -p warning -u 'tm_ivshmem_server@*' -o cat
		lines errors -p err -u 'tm_ivshmem_server@*' -o cat
		lines info -p info -u $unit -o cat
		lines debug -p debug..debug -u $unit -o cat
		lines short -u $unit -o short _PID=$(systemctl show -P MainPID $unit)
		ivshmem_client $socket watch >/watched2 &
		status second '2 nodes'
		unit_reloads $unit
		status reloaded '2 nodes'
		unit_dies $unit
		status taken '2 nodes'
		kill $!
		status left '1 node'
		systemctl stop $unit
	END
	run in_container "$TEST_DIR/script"
	echo "$output"
	local serving='serving /var/lib/tm_ivshmem_server/fam, 2M'
	grep -qx "began: \"$serving, 0 nodes\"" <<<"$output"
	grep -qx "joined: \"$serving, 1 node\"" <<<"$output"
	grep -qx "second: \"$serving, 2 nodes\"" <<<"$output"
	grep -qx "reloaded: \"$serving, 2 nodes\"" <<<"$output"
	grep -qx "taken: \"$serving, 2 nodes\"" <<<"$output"
	grep -qx "left: \"$serving, 1 node\"" <<<"$output"
	[ "$(grep '^none: ' <<<"$output" | grep -vc 'No entries')" -eq 0 ]
	[ "$(grep -c '^warnings: ' <<<"$output")" -eq 2 ]
	grep -qx 'warnings: a client is refused: .*' <<<"$output"
	grep -q '^warnings: .* was 2M and has been resized to 4M' <<<"$output"
	[ "$(grep -c '^errors: ' <<<"$output")" -eq 1 ]
	grep -q '^errors: .* was 2M and has been resized to 4M' <<<"$output"
	grep -q '^info: ID 0 joined' <<<"$output"
	[ "$(grep -c '^info: to ID' <<<"$output")" -eq 0 ]
	grep -q '^debug: to ID 0: 0$' <<<"$output"
	# The name stands there once, as the journal puts it.
	grep -qE '^short: .* tm_ivshmem_server\[[0-9]+\]: ID 0 joined' <<<"$output"
	[ "$(grep -c '^short: .*tm_ivshmem_server:' <<<"$output")" -eq 0 ]
}

# A block of doc/systemd.md that has this text.
page_block() { # TEXT
	awk -v text="$1" '/^```$/ && block { if (index(block, text)) { printf "%s", block; exit } block = "" }
		inside { block = block $0 "\n" }
		/^```/ { inside = /^```ini$/ }' "$SOURCE_DIR/doc/systemd.md"
}

@test "systemd takes no file from an instance, and the documented drop-in gives it another user" {
	need_mounted_root
	need_cgroups
	install_there
	echo 'OPTIONS=-p /run/fam/sock -f /var/lib/fam/memory' >"$ROOT/etc/tm_ivshmem_server/static.conf"
	echo 'OPTIONS=-p /run/fam/sock -A' >"$ROOT/etc/tm_ivshmem_server/dynamic.conf"
	page_block User=fam >"$TEST_DIR/static.conf"
	[ -s "$TEST_DIR/static.conf" ]
	for name in static dynamic shared; do
		mkdir "$ROOT/etc/systemd/system/tm_ivshmem_server@$name.service.d"
	done
	cp "$TEST_DIR/static.conf" "$ROOT/etc/systemd/system/tm_ivshmem_server@static.service.d/user.conf"
	sed 's/^User=.*/DynamicUser=yes/; /^StateDirectory=/d' "$TEST_DIR/static.conf" \
		>"$ROOT/etc/systemd/system/tm_ivshmem_server@dynamic.service.d/user.conf"
	printf '[Service]\nUser=fam\n' \
		>"$ROOT/etc/systemd/system/tm_ivshmem_server@shared.service.d/user.conf"
	cat >"$TEST_DIR/script" <<-'END'
		useradd --system fam
		systemctl start tm_ivshmem_server@other tm_ivshmem_server@gone
		systemctl stop tm_ivshmem_server@gone
		systemctl clean --what=all tm_ivshmem_server@gone || : # there is nothing
		systemctl start tm_ivshmem_server@shared || : # whose user may not write there
		systemctl stop tm_ivshmem_server@shared
		ivshmem_client /run/tm_ivshmem_server/other.sock list && echo other is there
		stat -c '%n %F %U' /run/tm_ivshmem_server/* /var/lib/tm_ivshmem_server/*
		for name in static dynamic; do
			systemctl start tm_ivshmem_server@$name || continue
			ivshmem_client /run/fam/sock watch >/watched.$name 2>&1 &
			eventually grep -q '^id' /watched.$name
			systemctl restart tm_ivshmem_server@$name
			unit_dies tm_ivshmem_server@$name
			ivshmem_client /run/fam/sock list | sed "s/^peer/$name: peer/"
			stat -c "$name: %n %F %U" /run/fam/sock /var/lib/fam/memory
			eventually grep -q '^leave 1' /watched.$name
			systemctl stop tm_ivshmem_server@$name
			cat /watched.$name
		done
	END
	run in_container "$TEST_DIR/script"
	echo "$output"
	grep -qx 'other is there' <<<"$output"
	grep -qx '/run/tm_ivshmem_server/other.sock socket root' <<<"$output"
	grep -qx '/var/lib/tm_ivshmem_server/other regular file root' <<<"$output"
	grep -qx '/var/lib/tm_ivshmem_server/gone regular file root' <<<"$output"
	for name in static dynamic; do
		grep -qx "$name: peer 0 1" <<<"$output"
	done
	grep -qx 'static: /run/fam/sock socket fam' <<<"$output"
	grep -qx 'static: /var/lib/fam/memory regular file fam' <<<"$output"
	[ "$(grep -c '^dynamic: /run/fam/sock .* root$' <<<"$output")" -eq 0 ]
	[ "$(grep -c '^leave 1' <<<"$output")" -eq 2 ]
}

@test "the documented unit of one's own is one for a user's systemd as well" {
	need_mounted_root
	need_cgroups
	install_there
	mkdir -p "$ROOT/etc/systemd/user"
	page_block %h/ | sed 's,/usr/local/sbin,/usr/sbin,' >"$ROOT/etc/systemd/user/fam.service"
	[ -s "$ROOT/etc/systemd/user/fam.service" ]
	# As user@.service is one, but without logind.
	cat >"$ROOT/etc/systemd/system/manager.service" <<-'END'
		[Service]
		User=somebody
		Type=notify
		RuntimeDirectory=somebody
		Environment=XDG_RUNTIME_DIR=/run/somebody
		Delegate=yes
		ExecStart=/lib/systemd/systemd --user
	END
	cat >"$TEST_DIR/script" <<-'END'
		useradd --create-home somebody
		as() { runuser -u somebody -- env XDG_RUNTIME_DIR=/run/somebody "$@"; }
		systemctl start manager
		as systemctl --user start fam && echo started
		as ivshmem_client /run/somebody/fam.sock watch >/watched 2>&1 &
		eventually grep -q '^id' /watched
		as systemctl --user restart fam
		unit_dies fam as systemctl --user
		as ivshmem_client /run/somebody/fam.sock list
		stat -c '%n %F %U' /run/somebody/fam.sock /home/somebody/fam.memory
		eventually grep -q '^leave 1' /watched
		as systemctl --user stop fam
		cat /watched
		journalctl -b -n 20 -o cat
	END
	run in_container "$TEST_DIR/script"
	echo "$output"
	grep -qx started <<<"$output"
	grep -qx 'peer 0 1' <<<"$output"
	grep -qx 'leave 1' <<<"$output"
	grep -qx '/home/somebody/fam.memory regular file somebody' <<<"$output"
}
