# shellcheck shell=bash
# libvirt for tests: its daemons, network, and whatever a test starts beside them, in namespaces of
# their own, where all that they write and configure is gone at the end. So the domains are defined at
# the paths that they name, and the machine and its libvirt notice nothing. Loaded after guest.bash.
#
# The tests of a file share one libvirt, which ends with the folder that it was started for, whatever
# becomes of the tests; libvirt_clean leaves nothing in it for the next test.

need_libvirt() {
	local first=${TEST_DIR:-$BATS_FILE_TMPDIR}/libvirt
	need_namespace
	need_own_root
	need_tool pgrep ip libvirtd virtlogd virsh dnsmasq qemu-img mformat mcopy syslinux
	id libvirt-qemu >/dev/null 2>&1 || skip "needs Debian's user for QEMU, libvirt-qemu"
	getent group kvm >/dev/null || skip "needs the group kvm"
	need_guests
	[ -s "$first" ] || libvirt_start "$first"
	FIRST=$(cat "$first")
	ROOT=/proc/$FIRST/root # the file system in there
	SOCK=/run/tm_ivshmem_server/fam.sock
	FILE=/var/lib/tm_ivshmem_server/fam
	inside mkdir -p "${SOCK%/*}" "${FILE%/*}"
}

# Starts libvirt, and writes the process ID of the first process in its namespaces to a file.
libvirt_start() { # FILE
	local holder
	# Not a job of this shell, which waits for all of its own at the end of a test.
	# shellcheck disable=SC2016 # expanded by the shell inside
	holder=$(
		unshare --mount --net --ipc --uts --pid --fork --kill-child \
			bash -c 'while [ -d "$1" ]; do sleep 1; done' first "${1%/*}" >/dev/null 2>&1 3>&- &
		echo $!
	)
	eventually pgrep -P "$holder" -x bash >"$WORK/first"
	FIRST=$(cat "$WORK/first")
	# shellcheck disable=SC2016
	inside sh -ec '
		mount -t proc proc /proc
		umount -R -l /sys || true
		mount -t sysfs sysfs /sys
		mount -t tmpfs -o mode=755 tmpfs /run
		awk "\$5 ~ \"^/dev/\" { print \$5 }" /proc/self/mountinfo | sort -r | xargs -r -n 1 umount -l
		for d in /dev /etc /var; do
			mkdir -p /run/private$d/files /run/private$d/work
			mount -t overlay overlay $d -o \
				"lowerdir=$d,upperdir=/run/private$d/files,workdir=/run/private$d/work"
		done
		mount -t devpts -o gid=tty,mode=620,ptmxmode=666 devpts /dev/pts
		mount -t tmpfs -o mode=1777 tmpfs /dev/shm
		# No node uses KVM; and where root may and the user of QEMU may not, libvirt examines QEMU
		# anew at every turn, for many seconds.
		rm -f /dev/kvm
		ip link set lo up
	' 2>"$WORK/mounts" || {
		kill -KILL "$holder"
		skip "cannot mount in a namespace what libvirt needs: $(tail -n 1 "$WORK/mounts")"
	}
	inside virtlogd -d
	inside libvirtd -d
	eventually virsh_answers
	inside virsh -q net-start default
	mv "$WORK/first" "$1"
}

# Ends nodes and server of a test, and removes what they leave; where it failed, says what they said.
libvirt_clean() {
	local node
	[ -n "${SOCK-}" ] && [ -n "${ROOT-}" ] || return 0
	for node in $(inside virsh -q list --all --name); do
		[ -n "${BATS_TEST_COMPLETED-}" ] || tail -n 5 "$ROOT/var/log/libvirt/qemu/$node"*.log || true
		inside virsh -q destroy "$node" >/dev/null 2>&1 || true
		inside virsh -q undefine "$node"
	done
	[ ! -s "$ROOT${SOCK%.sock}.pid" ] || inside kill -KILL -- "-$(cat "$ROOT${SOCK%.sock}.pid")" || true
	inside sh -c "rm -rf ${SOCK%/*} ${FILE%/*} /dev/shm/fam /var/log/libvirt/qemu/node*"
}

# Runs a command in the namespaces.
inside() { # COMMAND...
	nsenter --target "$FIRST" --mount --net --ipc --uts --pid -- "$@" </dev/null 3>&-
}

virsh_answers() {
	inside virsh -q list >/dev/null 2>&1
}

# Makes the disk of a node: a boot loader, the guests' kernel, its init, and the steps that it does.
node_disk() { # NODE STEPS
	local image=$WORK/$1.img
	rm -f "$image"
	truncate -s 32M "$image"
	printf 'DEFAULT linux\nLABEL linux\nLINUX vmlinuz\nINITRD initrd\nAPPEND %s\n' \
		"$(guest_command_line "$2")" >"$WORK/syslinux.cfg"
	mformat -i "$image" ::
	mcopy -i "$image" "$KERNEL" "$WORK/syslinux.cfg" ::
	mcopy -i "$image" "$INITRD" ::initrd
	syslinux --install "$image"
	inside qemu-img convert -O qcow2 "$image" "/var/lib/libvirt/images/$1.qcow2"
}

# Prints one of the domains, node05.xml.file or node05.xml.shm, as the node with that number: node05
# without KVM, every other with a name, uuid, MAC address, disk and log of its own besides.
node_xml() { # NUMBER XML
	sed -e "s/^<domain type='kvm'>/<domain type='qemu'>/" -e "s/node05/node$1/" \
		-e "s/<uuid>\(.*\)05</<uuid>\1$1</" -e "s/<mac address='\(.*\)05'/<mac address='\1$1'/" \
		"$SOURCE_DIR/$2"
}

node_define() { # NUMBER XML
	node_xml "$1" "$2" >"$WORK/node$1.xml"
	inside virsh -q define "$WORK/node$1.xml"
}

node_start() { # NODE
	inside virsh -q start "$1"
}

# The node does not start, and virsh and the node's log say why.
node_refused() { # NODE TEXT...
	local status=0
	inside virsh -q start "$1" >"$WORK/virsh" 2>&1 || status=$?
	is "status of virsh start: $(cat "$WORK/virsh")" "$status" 1
	has "$WORK/virsh" "error: Failed to start domain '$1'" "${@:2}"
	has "$ROOT/var/log/libvirt/qemu/$1.log" "${@:2}"
}

node_ended() { # NODE
	[ ! -e "$ROOT/run/libvirt/qemu/$1.xml" ]
}

node_console() { # NODE
	tr -d '\r' <"$ROOT/var/log/libvirt/qemu/$1-console.log"
}

node_has_said() { # NODE TEXT
	node_console "$1" | grep -qxF -e "fam: $2"
}

# Waits until a node says the text: virtlogd may write that only when the node has ended.
node_says() { # NODE TEXT
	eventually node_has_said "$1" "$2" ||
		no "no '$2' from $1:" "$(node_console "$1"; cat "$ROOT/var/log/libvirt/qemu/$1.log")"
}

# Waits for the end of a node, which must have done all its steps and switched its power off.
node_ends() { # NODE
	eventually node_ended "$1"
	node_says "$1" "done"
	is "state of $1" "$(inside virsh domstate "$1" --reason | head -n 1)" 'shut off (shutdown)'
}

# The user that the QEMU of a node runs as.
node_user() { # NODE
	inside stat -c %U "/proc/$(cat "$ROOT/run/libvirt/qemu/$1.pid")"
}
