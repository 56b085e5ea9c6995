// Without runs a command on a host that lacks something, for tests of how a
// program behaves there:
//
//	without [-dir DIR] [-device FILE] [-net-admin] [-mknod] [-offload NAME] COMMAND [ARG...]
//
// The command replaces this process, so signals and the exit code are the command's.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "without:", err)
		os.Exit(125) // as nohup(1) and similar programs do
	}
}

func run() error {
	dir := flag.String("dir", "", "put an empty directory in place of `DIR`")
	device := flag.String("device", "", "forbid to open the device `FILE`")
	netAdmin := flag.Bool("net-admin", false, "take CAP_NET_ADMIN away")
	mknod := flag.Bool("mknod", false, "drop CAP_MKNOD")
	offload := flag.String("offload", "", "let the kernel refuse an offload by the `NAME` of twilld's flag")
	flag.Parse()
	if flag.NArg() == 0 {
		return errors.New("which command?")
	}
	// All of this affects the calling thread and the program that it executes.
	runtime.LockOSThread()
	if err := hide(*dir, *device); err != nil {
		return err
	}
	for capability, drop := range map[uintptr]bool{unix.CAP_NET_ADMIN: *netAdmin, unix.CAP_MKNOD: *mknod} {
		if !drop {
			continue
		}
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, capability, 0, 0, 0); err != nil {
			return fmt.Errorf("drop capability %d: %w", capability, err)
		}
	}
	if *offload != "" {
		if err := refuse(*offload); err != nil {
			return err
		}
	}
	return syscall.Exec(flag.Arg(0), flag.Args(), os.Environ())
}

// hide hides directories and files in a mount namespace of its own. Empty names
// are skipped.
func hide(dir, device string) error {
	if dir == "" && device == "" {
		return nil
	}
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("unshare mounts: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if dir != "" {
		if err := unix.Mount("tmpfs", dir, "tmpfs", 0, ""); err != nil {
			return fmt.Errorf("mount on %s: %w", dir, err)
		}
	}
	if device == "" {
		return nil
	}
	// Devices on a mount with nodev cannot be opened.
	err := unix.Mount(device, device, "", unix.MS_BIND, "")
	if err == nil {
		err = unix.Mount("", device, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_NODEV, "")
	}
	if err != nil {
		return fmt.Errorf("mount %s: %w", device, err)
	}
	return nil
}
