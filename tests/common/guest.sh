#!/bin/sh
# The first process of a user-mode-linux guest whose root is the host's: what tests/e2e_guest.rs asks for by a file of shell
# variables, named on the kernel's command line as TERRANE_GUEST.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C DM_DISABLE_UDEV=1
mount -t proc none /proc
mount -t sysfs none /sys
mount -t tmpfs none /run
modules=/usr/lib/uml/modules/$(uname -r)/kernel
. "$TERRANE_GUEST"
case $TASK in
    dm-crypt)
        for module in crypto/ecb crypto/xts crypto/cbc crypto/hmac security/keys/encrypted-keys/encrypted-keys drivers/md/dm-mod \
            drivers/md/dm-crypt; do
            insmod "$modules/$module.ko"
        done
        dmsetup create layer --table "$TABLE" && dd if=/dev/mapper/layer of="$OUT" bs=4096 conv=fsync status=none && echo "guest done"
        ;;
    write)
        insmod "$modules/fs/fuse/fuse.ko"
        mount /dev/ubda "$REGION" && "$TERRANE" mount "$MOUNT" && python3 "$WRITER" "$FILE" "$FIRST" "$SEED" "$SECTORS"
        ;;
esac
poweroff -f
