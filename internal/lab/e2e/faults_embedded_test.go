package e2e

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/twillnet/twill/internal/lab/etcdtest"
	"github.com/twillnet/twill/internal/lab/netlab"
	"github.com/twillnet/twill/internal/lab/testkit"
)

// pod-a ── host a ──────────── host b ── pod-b
//
//	etcd in twilld, its disk full
func TestFullDiskEndsTheDaemonWithTheEtcdAndLosesNoLease(t *testing.T) {
	t.Parallel()
	l := embeddedLab(t)
	a, b := l.daemons[0], l.daemons[1]
	disk := newDisk(t, l.Hosts[0].NS, 192) // the etcd makes files of 64 MB for its log
	a.wrap = disk.enter
	a.args = append(a.args, "--embedded-etcd="+disk.dir+"/etcd", "--embedded-etcd-listen="+l.Hosts[0].Addr.String(), "--embedded-etcd-plaintext")
	l.configure()
	b.start()
	b.waitReady()
	l.reachesInTheEnd(0, 1)
	testkit.Must(t, l.SetPodMTU(1472), ping(l.pod(0), l.pod(1).Addr, 1472))
	expectKept := l.remember(a)

	disk.fill(t)
	testkit.Eventually(t, "the daemon ends", func() bool {
		_ = l.putFiller()
		return a.ended()
	})
	a.endedFor(t, "embedded etcd stopped: ", "no space left on device", "free space")
	if got := b.status().Source.Leases; got != 2 {
		t.Errorf("host b has %d leases, want 2", got)
	}

	// What systemd would do, before and after an operator has made room.
	a.start()
	testkit.Eventually(t, "the daemon ends on a full disk", func() bool {
		_ = l.putFiller() // there may be room for a start
		return a.ended()
	})
	a.endedFor(t, "no space left on device", "free space")
	disk.empty(t)
	a.start()
	a.waitReady()
	expectKept()
	l.etcdctl("put", "/coreos.com/network/subnets/10.5.77.0-24", `{"PublicIP":"172.31.9.77","PublicIPv6":null}`)
	l.seesInTheEnd(1, 3)
}

// endedFor fails the test unless the process has ended with an error whose line,
// the last one, contains all of want.
func (d *daemon) endedFor(t *testing.T, want ...string) {
	t.Helper()
	if code := d.wait(); code != 1 {
		t.Errorf("exit code %d, want 1", code)
	}
	log := strings.TrimSpace(d.stderr.String())
	last := log[strings.LastIndex(log, "\n")+1:]
	for _, text := range want {
		if !strings.Contains(last, text) {
			t.Errorf("the last line lacks %q: %s", text, last)
		}
	}
}

// putFiller writes 64 KB to etcd, under a key that is not read.
func (l *etcdLab) putFiller() error {
	path, err := etcdtest.Binary("etcdctl")
	testkit.Must(l.t, err)
	cmd := l.host.NS.Command(context.Background(), path, "--endpoints=http://127.0.0.1:"+l.port, "--command-timeout=2s", "put", "/filler")
	cmd.Stdin = strings.NewReader(strings.Repeat("x", 64<<10))
	return cmd.Run()
}

// disk is a small file system in a mount namespace of its own, so that nothing of
// it stays on the machine.
type disk struct {
	dir   string
	outer string   // path of dir for this process
	enter []string // a command that runs another one where dir is there
}

// newDisk makes a disk of so many megabytes for what runs in ns.
func newDisk(t *testing.T, ns *netlab.Namespace, megabytes int) *disk {
	t.Helper()
	dir := scratchDir(t)
	holder := ns.Command(context.Background(), "unshare", "--mount", "sh", "-c",
		fmt.Sprintf("mount -t tmpfs -o mode=0700,size=%dm tmpfs %s && echo mounted && exec sleep infinity", megabytes, dir))
	out, err := holder.StdoutPipe()
	testkit.Must(t, err, holder.Start())
	t.Cleanup(func() {
		_ = holder.Process.Kill()
		_ = holder.Wait()
	})
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "mounted\n" {
		t.Fatalf("mount a disk at %s: %q, %v", dir, line, err)
	}
	proc := fmt.Sprintf("/proc/%d", holder.Process.Pid)
	return &disk{dir: dir, outer: proc + "/root" + dir, enter: []string{"nsenter", "--mount=" + proc + "/ns/mnt", "--"}}
}

// fill leaves no room.
func (d *disk) fill(t *testing.T) {
	t.Helper()
	f, err := os.Create(filepath.Join(d.outer, "filler"))
	testkit.Must(t, err)
	defer f.Close()
	for block := make([]byte, 4<<10); err == nil; {
		_, err = f.Write(block)
	}
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
}

// empty undoes fill.
func (d *disk) empty(t *testing.T) {
	t.Helper()
	testkit.Must(t, os.Remove(filepath.Join(d.outer, "filler")))
}
