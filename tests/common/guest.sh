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
    fail)
        # The disk answers nothing but errors amid the writes, and then works again.
        insmod "$modules/fs/fuse/fuse.ko"
        insmod "$modules/drivers/md/dm-mod.ko"
        length=$(blockdev --getsz /dev/ubda)
        become() {
            dmsetup suspend --nolockfs --noflush disk && dmsetup load disk --table "$1" && dmsetup resume disk
        }
        dmsetup create disk --table "0 $length linear /dev/ubda 0"
        mount /dev/mapper/disk "$REGION" && "$TERRANE" mount "$MOUNT" || exit
        python3 "$WRITER" "$FILE" "$FIRST" "$SEED" "$SECTORS" &
        sleep "$AFTER"
        become "0 $length error"
        wait
        become "0 $length linear /dev/ubda 0"
        umount "$MOUNT"
        while ! umount "$REGION"; do sleep 0.1; done
        # The file system's own recovery.
        mount /dev/mapper/disk "$REGION" && umount "$REGION" && echo "guest done"
        ;;
esac
poweroff -f
