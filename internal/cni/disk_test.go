package cni

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/internal/lab/netlab/netlabtest"
	"github.com/twillnet/twill/internal/lab/testkit"
)

// newDisk gives a node a file system of 16 KiB for its data directory.
func newDisk(t *testing.T, n *testNode) {
	t.Helper()
	netlabtest.Root(t)
	testkit.Must(t, os.Mkdir(n.dataDir, 0o700))
	testkit.Must(t, unix.Mount("tmpfs", n.dataDir, "tmpfs", 0, "size=16k,mode=700"))
	t.Cleanup(func() { testkit.Must(t, unix.Unmount(n.dataDir, unix.MNT_DETACH)) })
}

// On a full disk an ADD changes nothing, and pods can still be deleted, which makes room.
func TestFullDisk(t *testing.T) {
	n := newNode(t, subnetIPv4)
	newDisk(t, n)
	n.must("ADD", "a", "eth0", n.conf())
	filler := filepath.Join(n.dataDir, ".filler")
	if err := os.WriteFile(filler, make([]byte, 64<<10), 0o600); err == nil {
		t.Fatal("the disk is not full")
	}
	n.ran()
	for range 2 {
		_, err := n.call("ADD", "b", "eth0", n.conf())
		wantError(t, err, types.ErrIOFailure, "no space left on device", "dataDir")
		n.wantRan()
		n.wantFiles(".filler", "a")
	}
	n.must("DEL", "b", "eth0", n.conf()) // the runtime undoes the ADD
	n.wantRan()
	n.must("CHECK", "a", "eth0", n.conf("\"prevResult\": {}"))
	n.must("DEL", "a", "eth0", n.conf())
	n.must("DEL", "a", "eth0", n.conf())
	n.wantRan("bridge CHECK a/eth0", "bridge DEL a/eth0")
	testkit.Must(t, os.Remove(filler))
	n.must("ADD", "b", "eth0", n.conf())
	n.wantFiles("b")
}

// On a read-only disk an ADD changes nothing. A DEL of what is not attached succeeds, and
// one of what is leaves the saved configuration for the next DEL.
func TestReadOnlyDisk(t *testing.T) {
	n := newNode(t, subnetIPv4)
	newDisk(t, n)
	n.must("ADD", "a", "eth0", n.conf())
	n.ran()
	testkit.Must(t, unix.Mount("", n.dataDir, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""))
	_, err := n.call("ADD", "b", "eth0", n.conf())
	wantError(t, err, types.ErrIOFailure, "read-only file system", "dataDir")
	n.wantRan()
	for range 2 {
		n.must("DEL", "b", "eth0", n.conf())
		n.wantRan()
	}
	for range 2 {
		_, err = n.call("DEL", "a", "eth0", n.conf())
		wantError(t, err, types.ErrIOFailure, "read-only file system", "make the file system of dataDir writable")
		n.wantRan("bridge DEL a/eth0")
		n.wantFiles("a")
	}
	testkit.Must(t, unix.Mount("", n.dataDir, "", unix.MS_REMOUNT, ""))
	n.must("DEL", "a", "eth0", n.conf())
	n.wantFiles()
}

// Pipes do not make the plugin wait, whether in place of the subnet file or of what is saved.
func TestPipesInPlaceOfFiles(t *testing.T) {
	n := newNode(t, subnetIPv4)
	testkit.Must(t, os.Remove(n.subnetFile))
	testkit.Must(t, unix.Mkfifo(n.subnetFile, 0o600))
	for _, command := range []string{"ADD", "STATUS"} {
		code := map[string]uint{"ADD": types.ErrTryAgainLater, "STATUS": types.ErrPluginNotAvailable}[command]
		_, err := n.call(command, "c", "eth0", n.conf())
		wantError(t, err, code, n.subnetFile)
	}
	testkit.Must(t, os.Mkdir(n.dataDir, 0o700))
	testkit.Must(t, unix.Mkfifo(filepath.Join(n.dataDir, "c"), 0o600))
	for _, command := range []string{"DEL", "CHECK"} {
		_, err := n.call(command, "c", "eth0", n.conf())
		wantError(t, err, types.ErrIOFailure, filepath.Join(n.dataDir, "c"))
	}
	n.wantRan()
}

// A subnet file that is cut off anywhere is refused, except where what is left is whole.
func TestHalfWrittenSubnetFile(t *testing.T) {
	n := newNode(t, subnetIPv4)
	for size := range len(subnetIPv4) - len("true\n") {
		n.setSubnet(subnetIPv4[:size])
		_, err := n.call("ADD", "c", "eth0", n.conf())
		wantError(t, err, types.ErrTryAgainLater, n.subnetFile)
	}
	n.wantRan()
	n.wantFiles()
}
