#!/usr/bin/env bats
# libvirt starts nodes as node05.xml.file and node05.xml.shm describe them. They are taken as they
# are, but for KVM, and for name, uuid, MAC address, disk and log of a second node. Disk and network are
# where the domains say; on the disk is a guest that does what the test wants and powers off.

# shellcheck disable=SC2016 # what guests do is text

load lib/common
load lib/guest
load lib/libvirt

teardown_more() {
	libvirt_clean
}

# The server inside, in the background; SOCK, FILE and the other paths are those of the systemd unit.
daemon() { # ARGUMENT...
	inside "$SERVER" -d -p "$SOCK" -i "${SOCK%.sock}.pid" "$@" 2>"$LOG"
}

daemon_kill() { # SIGNAL
	inside sh -c "kill -s $1 $(cat "$ROOT${SOCK%.sock}.pid")"
}

daemon_stop() {
	daemon_kill TERM
	eventually missing "$ROOT$SOCK" "$ROOT${SOCK%.sock}.pid"
}

# Kills it with its standby, and waits until both are gone: until then, somebody listens.
daemon_vanish() {
	inside kill -KILL -- "-$(cat "$ROOT${SOCK%.sock}.pid")"
	eventually nobody_listens
}

nobody_listens() {
	! inside grep -q "00010000 .* $SOCK\$" /proc/net/unix
}

# Whether the server, whose log is in a file, has restarted so often.
daemon_restarted() { # TIMES
	[ "$(grep -c 'restarted in place' "$ROOT${SOCK%.sock}.log")" -eq "$1" ]
}

# The PCI devices of a running node.
node_devices() { # NODE
	inside virsh -q qemu-monitor-command "$1" --hmp 'info pci'
}

@test "node05.xml.file: two nodes get memory, IDs and doorbells from the server, twice" {
	need_libvirt
	node_disk node05 id,wait:0,check:1
	node_disk node06 id,write:1,ring:0:0
	daemon -f "$FILE" -m 64M -o "${SOCK%.sock}.log"
	is "the socket" "$(stat -c '%A %U:%G' "$ROOT$SOCK")" 'srw-rw---- root:kvm'

	node_define 05 node05.xml.file
	node_define 06 node05.xml.file
	node_start node05
	is "user of QEMU" "$(node_user node05)" libvirt-qemu
	node_says node05 "id 0, 67108864 bytes"
	# Restarts in place, which node05 does not notice: it gets memory and doorbell from node06 below.
	for times in 1 2 3; do
		daemon_kill HUP
		eventually daemon_restarted "$times"
	done
	node_start node06
	node_ends node06
	node_says node06 "id 1, 67108864 bytes"
	node_ends node05
	node_says node05 "found 1 over 67108864 bytes"
	"$INIT" "$ROOT$FILE" check:1

	daemon_stop
	daemon -f "$FILE"
	node_disk node05 id,check:1,wait:0
	node_disk node06 id,check:1,ring:0:0
	node_start node05
	node_says node05 "id 0, 67108864 bytes"
	node_start node06
	node_ends node06
	node_ends node05
	daemon_stop
	"$INIT" "$ROOT$FILE" check:1
}

@test "node05.xml.shm: two nodes share an object that a server has made, or the first of them" {
	need_libvirt
	node_define 05 node05.xml.shm
	node_define 06 node05.xml.shm
	daemon -s fam -m 64M
	is "the object" "$(stat -c '%A %U:%G' "$ROOT/dev/shm/fam")" '-rw-rw---- root:kvm'
	daemon_stop
	node_disk node05 write:2
	node_disk node06 check:2,write:3
	node_start node05
	is "user of QEMU" "$(node_user node05)" libvirt-qemu
	node_ends node05
	node_start node06
	node_ends node06
	"$INIT" "$ROOT/dev/shm/fam" check:3

	rm "$ROOT/dev/shm/fam"
	node_start node05
	node_start node06
	is "the object" "$(stat -c '%U %s' "$ROOT/dev/shm/fam")" 'libvirt-qemu 67108864'
	inside virsh -q destroy node05
	inside virsh -q destroy node06
}

@test "what virsh says where something is missing, and that the remedy works" {
	need_libvirt
	node_disk node05 id
	node_define 05 node05.xml.file
	node_refused node05 "Failed to connect to '$SOCK': No such file or directory"
	daemon -s fam -m 32M
	daemon_vanish
	node_refused node05 "Failed to connect to '$SOCK': Connection refused"
	daemon -s fam -g root
	node_refused node05 "Failed to connect to '$SOCK': Permission denied"
	daemon_stop
	daemon -s fam -L
	node_refused node05 "server sent invalid ID message"
	daemon_stop
	daemon -s fam -n 2
	node_start node05
	# QEMU may say that only when it runs, and virtlogd writes it some time later.
	eventually grep -q "Too many eventfd received, device has 1 vectors" "$ROOT/var/log/libvirt/qemu/node05.log"
	inside virsh -q destroy node05
	daemon_stop

	# The same name and uuid: this takes the place of the other.
	node_define 05 node05.xml.shm
	# It "does not match" that, and since QEMU 10 "is too small for" it.
	node_refused node05 "backing store size 0x2000000 " " 'size' option 0x4000000"
	daemon -s fam -m 64M -t
	daemon_stop
	chmod 600 "$ROOT/dev/shm/fam"
	node_refused node05 "can't open backing store /dev/shm/fam for guest RAM: Permission denied"
	chmod 660 "$ROOT/dev/shm/fam"
	node_start node05
	inside virsh -q destroy node05
}

@test "a running node gets the device by virsh attach-device, and cannot be saved with it" {
	need_libvirt
	node_disk node05 id
	node_xml 05 node05.xml.file | sed '/^    <shmem/,/<.shmem/d' >"$WORK/without"
	node_xml 05 node05.xml.file | sed -n '/^    <shmem/,/<.shmem/p' >"$WORK/device"
	inside virsh -q define "$WORK/without"
	daemon -s fam
	inside virsh -q start --paused node05
	node_devices node05 >"$WORK/devices"
	hasnt "$WORK/devices" 1af4:1110
	inside virsh -q attach-device node05 "$WORK/device"
	node_devices node05 >"$WORK/devices"
	has "$WORK/devices" "PCI device 1af4:1110"
	run inside virsh save node05 /run/saved
	is "status of virsh save" "$status" 1
	[[ $output = *"Migration is disabled when using feature 'peer mode' in device 'ivshmem'"* ]] || no "$output"
	inside virsh -q destroy node05
	daemon_stop
}

# A domain as FAME's emulation_configure.bash makes them, with FAME_IVSHMSG: all devices of libvirt have
# their slots, and behind them come, by QEMU's own arguments, memory that is FAME_FAM, and doorbells. These
# need addr=, or QEMU, which makes them first, gives them the slots of others.
fame_define() { # NUMBER
	cat >"$WORK/node$1.xml" <<-END
		<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
		  <name>node$1</name>
		  <memory unit='MiB'>192</memory>
		  <vcpu placement='static'>1</vcpu>
		  <os><type arch='x86_64' machine='pc'>hvm</type><boot dev='hd'/></os>
		  <features><acpi/><apic/></features>
		  <on_reboot>destroy</on_reboot>
		  <devices>
		    <disk type='file' device='disk'>
		      <driver name='qemu' type='qcow2'/>
		      <source file='/var/lib/libvirt/images/node$1.qcow2'/>
		      <target dev='vda' bus='virtio'/>
		      <address type='pci' domain='0x0000' bus='0x00' slot='0x07' function='0x0'/>
		    </disk>
		    <controller type='usb' index='0' model='ich9-ehci1'>
		      <address type='pci' domain='0x0000' bus='0x00' slot='0x06' function='0x7'/>
		    </controller>
		    <controller type='virtio-serial' index='0'>
		      <address type='pci' domain='0x0000' bus='0x00' slot='0x05' function='0x0'/>
		    </controller>
		    <interface type='network'>
		      <source network='default'/>
		      <model type='virtio'/>
		      <address type='pci' domain='0x0000' bus='0x00' slot='0x03' function='0x0'/>
		    </interface>
		    <serial type='pty'><log file='/var/log/libvirt/qemu/node$1-console.log' append='off'/></serial>
		    <memballoon model='virtio'>
		      <address type='pci' domain='0x0000' bus='0x00' slot='0x08' function='0x0'/>
		    </memballoon>
		  </devices>
		  <qemu:commandline>
		    <qemu:arg value='-object'/>
		    <qemu:arg value='memory-backend-file,mem-path=$FILE,size=64M,id=FAM,share=on'/>
		    <qemu:arg value='-device'/>
		    <qemu:arg value='ivshmem-plain,memdev=FAM,addr=0x10'/>
		    <qemu:arg value='-chardev'/>
		    <qemu:arg value='socket,id=IVSHMSG,path=$SOCK'/>
		    <qemu:arg value='-device'/>
		    <qemu:arg value='ivshmem-doorbell,addr=0x11,chardev=IVSHMSG,vectors=16'/>
		  </qemu:commandline>
		</domain>
	END
	inside virsh -q define "$WORK/node$1.xml"
}

@test "domains as FAME's own scripts make them: a file, and doorbells with 16 vectors" {
	local find='
		for path in /sys/bus/pci/devices/*; do
			[ "$(cat $path/vendor) $(cat $path/device)" = "0x1af4 0x1110" ] || continue
			case $(ivshmem_client -D${path##*/} list) in
			*"vectors 16"*) bell=${path##*/} ;;
			*"vectors 0"*) plain=${path##*/} ;;
			esac
		done
		[ "$bell" ] && [ "$plain" ]
		ivshmem_client -D list 2>&1 | grep -q "has 2 ivshmem devices"
	'
	need_libvirt
	need_client_guests
	# The folder, the file and the socket are where FAME has them.
	SOCK=/var/lib/fame/node_socket
	FILE=/var/lib/fame/FAM
	inside mkdir -p /var/lib/fame
	inside "$SERVER" -d -f "$FILE" -m 64M -g libvirt-qemu -n 16 -p "$SOCK" -i "$SOCK.pid" 2>"$LOG"
	is "the file" "$(inside stat -c '%A %G' "$FILE")" '-rw-rw---- libvirt-qemu'
	is "the socket" "$(inside stat -c '%A %G' "$SOCK")" 'srw-rw---- libvirt-qemu'

	client_initrd node05 "$find"'
		ivshmem_client -D$bell run sh -c "
			echo fam: node \$IVSHMEM_ID listens
			read -r ready <&4
			read -r event <&4
			echo fam: \$event
			exec node show"
		ivshmem_client -D$plain run node show
		ivshmem_client -D$bell run node tell back
	'
	node_disk node05 ''
	client_initrd node06 "$find"'
		ivshmem_client -D$plain run node tell there
		ivshmem_client -D$bell ring 0 15
	'
	node_disk node06 ''
	fame_define 05
	fame_define 06
	node_start node05
	is "user of QEMU" "$(node_user node05)" libvirt-qemu
	node_says node05 "node 0 listens"
	node_start node06
	node_says node06 "told there"
	node_ends node06
	node_ends node05
	is "what node05 is told" "$(node_console node05 | grep -E '^fam: (ring|shown|told)')" \
		$'fam: ring 15 1\nfam: shown there\nfam: shown there\nfam: told back'
	is "what is in the file" "$(inside dd if="$FILE" bs=1 skip=$((0x20000)) count=4 status=none)" back
	daemon_stop
}
