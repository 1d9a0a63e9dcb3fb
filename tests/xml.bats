#!/usr/bin/env bats
# node05.xml.file and node05.xml.shm: libvirt's schema takes them, and they agree with the rest.

load lib/common

setup_more() {
	FILE=$SOURCE_DIR/node05.xml.file
	OBJECT=$SOURCE_DIR/node05.xml.shm
}

@test "both are valid" {
	need_tool virt-xml-validate xmllint
	for xml in "$FILE" "$OBJECT"; do
		run virt-xml-validate "$xml" domain
		is "status of virt-xml-validate: $output" "$status" 0
	done
	sed 's/ivshmem-doorbell/ivshmem-bell/' "$FILE" >wrong
	run virt-xml-validate wrong domain
	[ "$status" -ne 0 ] || no "anything is valid"
}

# Prints a domain with what its comment says for QEMU up to 2.4 in place of <shmem>.
old_form() { # XML
	sed -n "s|^<domain.*>|<domain type='kvm' $(grep -o "xmlns:qemu='[^']*'" "$1")>|p" "$1"
	sed -e '1,/^<domain/d' -e '/^    <shmem/,/<.shmem/d' -e '/^<.domain/d' "$1"
	sed -n '/^ *<qemu:commandline>$/,/<.qemu:commandline>$/p' "$1"
	echo '</domain>'
}

@test "both are valid in the form for QEMU up to 2.4, which their comments show" {
	need_tool virt-xml-validate xmllint
	for xml in "$FILE" "$OBJECT"; do
		old_form "$xml" >old
		run virt-xml-validate old domain
		is "status of virt-xml-validate: $output" "$status" 0
		hasnt old '<shmem'
		has old "<qemu:arg value='ivshmem,"
	done
}

@test "both are the same node, but for its memory" {
	for xml in "$FILE" "$OBJECT"; do
		sed -e '1,/^-->/d' -e '/<title>/d' -e '/^    <shmem/,/<.shmem/d' "$xml" >"$(basename "$xml")"
	done
	has node05.xml.file "<name>node05</name>" "</domain>"
	diff node05.xml.file node05.xml.shm
}

@test "the socket and the object's name are those of the systemd unit" {
	need_tool xmllint
	unit=$SOURCE_DIR/tm_ivshmem_server.service
	path=$(xmllint --xpath 'string(//shmem/server/@path)' "$FILE")
	has "$unit" "-p ${path/fam./%i.} " "--default-file /var/lib/tm_ivshmem_server/%i "
	has "$FILE" "-f /var/lib/tm_ivshmem_server/fam "
	has "$unit" "-s $(xmllint --xpath 'string(//shmem/@name)' "$OBJECT") "
}

# Prints the files that libvirt lets the QEMU of a domain use where AppArmor is on.
apparmor_rules() { # XML
	sed "s/^<domain type='kvm'/<domain type='qemu'/" "$1" | /usr/lib/libvirt/virt-aa-helper \
		--dryrun --replace --uuid "libvirt-$(xmllint --xpath 'string(//uuid)' "$1")" 2>&1
}

@test "libvirt's AppArmor rules let QEMU reach the memory, but only by way of <shmem>" {
	need_tool xmllint /usr/lib/libvirt/virt-aa-helper
	apparmor_rules "$FILE" >rules
	has rules '"/run/tm_ivshmem_server/fam.sock" rw,'
	apparmor_rules "$OBJECT" >rules
	has rules '"/dev/shm/fam" rw,'
	for xml in "$FILE" "$OBJECT"; do
		old_form "$xml" >old
		apparmor_rules old >rules
		has rules '"/var/lib/libvirt/images/node05.qcow2" rwk,'
		hasnt rules fam
	done
}
