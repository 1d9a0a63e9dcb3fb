#!/usr/bin/env bats
# ivshmem_client -D where the device is files that look like one in /sys: what no QEMU of today has, and
# what must be said where it cannot be used. Real devices are in guest-client.bats.
# shellcheck disable=SC2016,SC2153 # programs are text; lib/common.bash sets STATUS

load lib/common
load lib/client

AT=0000:00:04.0

# Writes bytes to a place in a file.
poke() { # FILE OFFSET BYTES, as in \x41
	printf '%b' "$3" | dd of="$1" bs=1 seek=$(($2)) conv=notrunc status=none
}

# A word of 32 bits in a file.
peek() { # FILE OFFSET
	od -An -tx4 -j $(($2)) -N 4 "$1" | tr -d ' '
}

# Makes a device: ID 5, memory of 64K, three vectors, revision 1.
device() { # [ADDRESS]
	AT=${1:-$AT}
	mkdir -p "pci/$AT"
	cd "pci/$AT" || return
	echo 0x1af4 >vendor
	echo 0x1110 >device
	echo 0x01 >revision
	echo 0 >enable
	truncate -s 256 config resource0
	truncate -s 4096 resource1
	truncate -s 64K resource2
	poke config 4 '\x07\x01'                     # command: memory, bus master
	poke config 0x34 '\x40'                      # capabilities
	poke config 0x40 '\x05\x50'                  # another one
	poke config 0x50 '\x11\x00\x02\x00\x01\x00\x00\x00\x01\x08\x00\x00' # MSI-X, its table and pending bits
	poke resource0 8 '\x05'
	cd "$DIR" || return
}

need_device() {
	need_namespace
	[ -d /sys/bus/pci/devices ] || skip "this machine has no PCI, and no folder to put a device into"
	mkdir -p pci
}

# The client in a machine that has the devices in the folder pci: see `try`.
in_machine() { # ARGUMENT...
	try unshare -m sh -c 'mount --bind pci /sys/bus/pci/devices && exec "$@"' - "${WRAP[@]}" "$CLIENT" "$@"
}

# It ends with a status, and with one line that says why.
refuses() { # STATUS TEXT ARGUMENT...
	in_machine "${@:3}"
	is "status of: ${*:3}: $(cat "$WORK/err")" "$STATUS" "$1"
	is "lines of: ${*:3}: $(cat "$WORK/err")" "$(wc -l <"$WORK/err")" 1
	has "$WORK/err" "$2"
}

says() { # TEXT ARGUMENT...
	in_machine "${@:2}"
	is "status of: ${*:2}: $(cat "$WORK/err")" "$STATUS" 0
	is "what ${*:2} says" "$(cat "$WORK/out")" "$1"
}

@test "which device: none, one of several, one that is none, another's, no /sys" {
	need_device
	refuses 1 'has no ivshmem device, PCI ID 1af4:1110' -D list
	device
	says $'id 5\nmemory 65536\nvectors 3\nrings polled' -D list
	device 0000:00:05.0
	refuses 1 'has 2 ivshmem devices: 0000:00:04.0 0000:00:05.0: name one, -D0000:00:05.0' -D list
	for address in -D0000:00:05.0 -D00:05.0 --device=00:05.0; do
		says $'id 5\nmemory 65536\nvectors 3\nrings polled' "$address" list
	done
	echo 0x1000 >pci/0000:00:05.0/device
	refuses 1 '0000:00:05.0 is no ivshmem device: its PCI ID is not 1af4:1110' -D00:05.0 list
	refuses 1 "there is no PCI device '00:06.0'" -D00:06.0 list
	says $'id 5\nmemory 65536\nvectors 3\nrings polled' -D list
	ln -s ../drivers/uio_pci_generic pci/0000:00:04.0/driver
	refuses 1 'the driver uio_pci_generic has 0000:00:04.0: unbind it' -D list
	ln -sfn ../drivers/vfio-pci pci/0000:00:04.0/driver
	refuses 1 'this machine has no IOMMU for its interrupts: unbind vfio-pci, and the client polls for rings' -D wait 0
	rm pci/0000:00:04.0/driver
	refuses 1 'cannot connect to missing: No such file or directory: ivshmem_client -D takes the ivshmem device' -S missing list
	try unshare -m sh -c 'mount -t tmpfs none /sys && exec "$@"' - "$CLIENT" -D list
	is 'status without /sys' "$STATUS" 1
	has "$WORK/err" 'cannot read /sys/bus/pci/devices: No such file or directory: is /sys mounted?'
}

@test "ringing: what is written to the register, and what cannot be rung" {
	need_device
	device
	says '' -D ring 7 2
	is 'the register' "$(peek "pci/$AT/resource0" 12)" 00070002
	says '' -D ring 9 all
	is 'the register' "$(peek "pci/$AT/resource0" 12)" 00090002
	refuses 1 'there is no vector 3: this device and all others have 3, numbered from 0' -D ring 7 3
	refuses 1 'cannot know who is there: ring nodes one by one' -D ring all
	refuses 1 'cannot know who joins and who leaves' -D watch
	refuses 2 'in place of a socket: leave out -S and -n' -D -S sock list
	refuses 2 'in place of a socket: leave out -S and -n' -D -n 3 list
	refuses 2 'give -D as well' --poll 5 list
	refuses 2 "--poll '0': give milliseconds" -D --poll 0 list
	refuses 2 "unknown command './pci'" -D ./pci # a folder's path may be longer than a message
	in_machine -D <<<$'dump\nint 4 1\nint all\n'
	is 'status of the dialog' "$STATUS" 1
	has "$WORK/out" 'our_id = 5'
	has "$WORK/err" 'cannot know who is there'
	is 'the register' "$(peek "pci/$AT/resource0" 12)" 00040001
}

@test "it is as it was found at the end, and by a signal; meanwhile MSI-X is on and bus mastering off" {
	need_device
	need_tool flock
	device
	poke "pci/$AT/config" 0x53 '\x40' # found with all vectors masked
	cp "pci/$AT/config" "$WORK/config"
	look='echo $(od -An -tx2 -j 4 -N 2 config) $(od -An -tx2 -j 0x52 -N 2 config) $(cat enable)
		od -An -tx4 -j 12 -N 4 resource1'
	in_machine -D run sh -c "cd pci/$AT; $look"
	is 'status' "$STATUS" 0
	is 'what is there meanwhile' "$(tr -s ' \n' ' ' <"$WORK/out")" '0103 8002 1 00000001 '
	cmp "pci/$AT/config" "$WORK/config"
	is 'enable' "$(cat "pci/$AT/enable")" 0
	for signal in HUP INT QUIT TERM KILL; do
		rm -f "$WORK/out"
		unshare -m env --default-signal=HUP,INT,QUIT sh -c '
			mount --bind pci /sys/bus/pci/devices && exec "$@"' - "$CLIENT" -D wait 0 >"$WORK/out" 2>&1 3>&- &
		CLIENT_PID=$!
		PIDS+=("$CLIENT_PID")
		eventually client_said "$WORK/out"
		has "$WORK/out" 'id 5'
		kill -s "$signal" "$CLIENT_PID"
		status=0
		wait "$CLIENT_PID" || status=$?
		is "status by $signal" "$status" $((128 + $(kill -l "$signal")))
		eventually flock -n "pci/$AT/resource1" true # who restores it has a lock until that is done
		cmp "pci/$AT/config" "$WORK/config"
		is "enable after $signal" "$(cat "pci/$AT/enable")" 0
	done
	refuses 1 'vector 1 was not rung' -D wait 1 0.1
	cmp "pci/$AT/config" "$WORK/config"
}

@test "one listener at a time, and rings of all its vectors" {
	need_device
	device
	in_machine -D run sh -c 'echo $IVSHMEM_ID $IVSHMEM_SIZE $IVSHMEM_VECTORS $(stat -Lc %s /dev/fd/3)
		read -r event <&4; echo $event
		"$0" -D wait 0 2>&1; echo $?
		# Files clear no pending bit: it is seen again and again.
		printf "\5" | dd of=pci/$1/resource1 bs=1 seek=2048 conv=notrunc status=none
		while read -r event vector count <&4; do
			echo $event $vector
			[ "$vector" != 2 ] || break
		done' "$CLIENT" "$AT"
	is 'status' "$STATUS" 0
	is 'what it finds' "$(cat "$WORK/out")" "5 65536 3 65536
ready
ivshmem_client: another process waits for rings of $AT already: only one can at a time
1
ring 0
ring 2"
}

@test "a device without MSI-X, without an ID, without memory, without rights" {
	need_device
	device
	poke "pci/$AT/config" 0x50 '\x05'
	says $'id 5\nmemory 65536\nvectors 0\nrings none, there is no MSI-X' -D list
	refuses 1 "$AT has no doorbells: it is ivshmem-plain, or has msi=off" -D ring 3 0
	in_machine -D run sh -c 'read -r event <&4; echo $event $IVSHMEM_VECTORS $IVSHMEM_MEMORY'
	is 'what it finds' "$(cat "$WORK/out")" 'ready 0 3'
	is 'what is said' "$(cat "$WORK/err")" "ivshmem_client: $AT cannot be rung: it has no MSI-X, as ivshmem-plain"
	# That of QEMU up to 2.5 may have doorbells all the same.
	echo 0x00 >"pci/$AT/revision"
	says '' -D ring 3 0
	is 'the register' "$(peek "pci/$AT/resource0" 12)" 00030000
	refuses 1 'has no doorbells' -D ring 3 1

	rm -r "pci/$AT"
	device
	echo 0x00 >"pci/$AT/revision"
	says $'id 5\nmemory 65536\nvectors 3\nrings polled' -D list
	poke "pci/$AT/resource0" 8 '\xff\xff\xff\xff'
	refuses 1 "$AT has no ID: QEMU has received no memory from a server for it" -D list
	poke "pci/$AT/resource0" 8 '\x05\x00\x00\x00'
	rm "pci/$AT/resource2"
	refuses 1 "$AT has no memory: its server offers none" -D list

	WRAP=(setpriv --reuid="$NOBODY" --clear-groups)
	refuses 1 "cannot open /sys/bus/pci/devices/$AT/config: Permission denied: it belongs to root" -D list
	chmod 666 "pci/$AT/config"
	refuses 1 "cannot write to /sys/bus/pci/devices/$AT/enable: Permission denied: it belongs to root" -D list
}
