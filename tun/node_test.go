package tun

import (
	"os"
	"os/exec"
	"strings"
	"testing"
)

// A container has a /dev of its own: here an empty one, in a mount namespace where
// the test runs itself again.
func TestNodeIsMadeInAContainerThatLacksIt(t *testing.T) {
	if os.Getenv("TWILL_EMPTY_DEV") != "" {
		if err := Probe(); err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(devNetTun)
		if err != nil || info.Mode()&os.ModeCharDevice == 0 {
			t.Errorf("made %v, %v; want a device", info, err)
		}
		return
	}
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	inEmptyDev := func(options, script string) (string, error) {
		cmd := exec.Command("unshare", "--mount", "sh", "-c", "mount -t tmpfs -o "+options+` none /dev && exec "$@"`, "sh",
			"sh", "-c", script, "sh", os.Args[0], "-test.run=^TestNodeIsMadeInAContainerThatLacksIt$", "-test.v")
		cmd.Env = append(os.Environ(), "TWILL_EMPTY_DEV=1")
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	if out, err := inEmptyDev("mode=755", `exec "$@"`); err != nil || !strings.Contains(out, "PASS") {
		t.Errorf("%v\n%s", err, out)
	}
	// A container that may make no nodes, and one that may not use them.
	out, err := inEmptyDev("ro", `exec "$@"`)
	if err == nil || !strings.Contains(out, "/dev/net/tun is missing") || !strings.Contains(out, "MKNOD") {
		t.Errorf("read-only: %v\n%s", err, out)
	}
	out, err = inEmptyDev("mode=755,nodev", `"$@"; ls /dev/net`)
	if err != nil || !strings.Contains(out, "device 10:200") || strings.Contains(out, "\ntun\n") {
		t.Errorf("devices not allowed, want no node left: %v\n%s", err, out)
	}
}
