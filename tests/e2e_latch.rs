//! Guards against a log that a latched volume fills with a line a request, and against one that does not say what to do.

#[path = "common/world.rs"]
mod world;

use std::fs;
use std::os::unix::fs::FileExt;

use world::{MIB, World, errno, must, pattern, read_at, within, writable};

/// A sync of a layer's `data` fails while a file `fail` lies beside it.
const FAILING_SYNC: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

int fdatasync(int fd) {
    char name[32], path[4096] = {0};
    snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
    ssize_t len = readlink(name, path, sizeof path - 1);
    if (len > 5 && strcmp(path + len - 5, "/data") == 0) {
        memcpy(path + len - 4, "fail", 4);
        if (access(path, F_OK) == 0) {
            errno = EIO;
            return -1;
        }
    }
    int (*real)(int) = dlsym(RTLD_NEXT, "fdatasync");
    return real(fd);
}
"#;

/// A mount whose syncs can be made to fail.
fn mount(world: &World) {
    fs::write(world.path("failing.c"), FAILING_SYNC).unwrap();
    must("cc", &["-shared", "-fPIC", "-o", &world.at("failing.so"), &world.at("failing.c"), "-ldl"]);
    let mut command = world.command(&["mount", &world.mnt()]);
    assert!(command.env("LD_PRELOAD", world.path("failing.so")).status().unwrap().success());
}

#[test]
fn a_latched_volume_is_told_of_once() {
    let mut world = World::new();
    let id = world.volume("web", "64M");
    world.volume("other", "8M");
    mount(&world);
    let lines = |word: &str| world.log().lines().filter(|line| line.contains(word)).count();
    for round in 1..=2 {
        let file = writable(&world.file("web")).unwrap();
        file.write_all_at(&pattern(MIB as usize, round), 0).unwrap();
        file.sync_all().unwrap();
        let fail = world.active_layer("web").join("fail");
        fs::write(&fail, "").unwrap();
        file.write_all_at(&pattern(MIB as usize, 9), MIB).unwrap();
        assert_eq!(errno(file.sync_all()), libc::EIO);
        for _ in 0..200 {
            assert_eq!(errno(file.write_all_at(&pattern(4096, 9), 2 * MIB)), libc::EIO);
            assert_eq!(errno(file.sync_all()), libc::EIO);
        }
        fs::remove_file(&fail).unwrap();
        assert_eq!(errno(file.write_all_at(b"still refused", 0)), libc::EIO);
        let told = lines("is latched");
        assert_eq!(told, round as usize, "{}", world.log());
        // The error itself is told as well.
        assert!(lines(&id) <= round as usize * 4, "{}", world.log());
        let words = world.log();
        let told = words.lines().rfind(|line| line.contains("is latched")).unwrap();
        for word in [&id[..], "close the volume's file", "open it again", "terrane status"] {
            assert!(told.contains(word), "{word:?} is missing in: {told}");
        }
        let output = world.run(&["status"]);
        assert_eq!(output.status.code(), Some(6));
        // One command says what is wrong and what to do.
        let shown = world.json(&["volume", "show", "web"]);
        assert_eq!(shown["state"], "latched");
        let reason = shown["reason"].as_str().unwrap();
        for word in ["syncing a layer: Input/output error", "close its file and open it again"] {
            assert!(reason.contains(word), "{reason}");
        }
        assert!(String::from_utf8_lossy(&output.stdout).contains(reason));
        assert_eq!(errno(writable(&world.file("other")).unwrap().write_all_at(b"goes on", 0)), 0);
        drop(file);
        // The kernel tells of a close a moment later.
        assert!(within(20, || writable(&world.file("web")).is_ok_and(|f| f.write_all_at(b"x", 0).is_ok())));
        assert!(world.json(&["volume", "show", "web"])["reason"].is_null());
        assert_eq!(world.problems(), Vec::<String>::new());
        assert!(read_at(&world.file("web"), 1, 4095).unwrap() == pattern(4096, round)[1..]);
    }
    world.unmount();
    world.expect_disorder();
}
