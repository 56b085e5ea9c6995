package nlwatch

import (
	"encoding/binary"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/internal/lab/netlab"
	"github.com/twillnet/twill/internal/lab/netlab/netlabtest"
	"github.com/twillnet/twill/internal/lab/testkit"
)

func TestMain(m *testing.M) { netlabtest.Main(m) }

// watch opens a watcher of interfaces in a namespace of its own, and returns the
// namespace's loopback.
func watch(t *testing.T) (w *Watcher, nl *netlink.Handle, lo netlink.Link) {
	t.Helper()
	w, ns, lo := watchIn(t)
	return w, ns.Netlink(), lo
}

func watchIn(t *testing.T) (w *Watcher, ns *netlab.Namespace, lo netlink.Link) {
	t.Helper()
	ns = netlabtest.Namespace(t, "host")
	lo, err := ns.Netlink().LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	if err := ns.Do(func() error {
		w, err = Open(unix.RTNLGRP_LINK)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.Close)
	return w, ns, lo
}

func TestChangesAreReported(t *testing.T) {
	w, nl, lo := watch(t)
	if err := nl.LinkSetMTU(lo, 1400); err != nil {
		t.Fatal(err)
	}
	messages, missed := w.Next(time.Now().Add(testkit.Patience))
	if len(messages) == 0 || missed || messages[0].Header.Type != unix.RTM_NEWLINK {
		t.Errorf("%v, missed %t", messages, missed)
	}
}

func TestDeadlineEndsTheWait(t *testing.T) {
	w, _, _ := watch(t)
	for _, deadline := range []time.Time{time.Now().Add(20 * time.Millisecond), time.Now().Add(-time.Hour)} {
		if messages, missed := w.Next(deadline); messages != nil || missed {
			t.Errorf("%v, missed %t", messages, missed)
		}
		if time.Now().Before(deadline) {
			t.Error("ended before the deadline")
		}
	}
}

func TestChangesThatAreNotReadInTimeAreMissed(t *testing.T) {
	w, nl, lo := watch(t)
	if err := w.socket.SetReceiveBufferSize(2048, true); err != nil {
		t.Fatal(err)
	}
	for i := range 200 {
		if err := nl.LinkSetMTU(lo, 1400+i%2); err != nil {
			t.Fatal(err)
		}
	}
	for deadline := time.Now().Add(testkit.Patience); ; {
		messages, missed := w.Next(deadline)
		if missed {
			return
		}
		if messages == nil {
			t.Fatal("of 200 changes none was missed")
		}
	}
}

// TestMessagesOfOtherProcessesAreNotTaken: only the kernel is believed.
func TestMessagesOfOtherProcessesAreNotTaken(t *testing.T) {
	w, ns, lo := watchIn(t)
	own, err := unix.Getsockname(w.socket.GetFd())
	if err != nil {
		t.Fatal(err)
	}
	if err := ns.Do(func() error {
		forger, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		defer unix.Close(forger)
		message := binary.NativeEndian.AppendUint32(nil, unix.SizeofNlMsghdr)
		message = append(message, make([]byte, unix.SizeofNlMsghdr-len(message))...)
		return unix.Sendto(forger, message, 0,
			&unix.SockaddrNetlink{Family: unix.AF_NETLINK, Pid: own.(*unix.SockaddrNetlink).Pid})
	}); err != nil {
		t.Fatal(err)
	}
	if err := ns.Netlink().LinkSetMTU(lo, 1400); err != nil {
		t.Fatal(err)
	}
	messages, _ := w.Next(time.Now().Add(testkit.Patience))
	if len(messages) == 0 || messages[0].Header.Type != unix.RTM_NEWLINK {
		t.Errorf("%v", messages)
	}
}

func TestCloseEndsTheWait(t *testing.T) {
	w, _, _ := watch(t)
	done := make(chan struct{})
	go func() {
		defer close(done)
		w.Next(time.Time{})
	}()
	w.Close()
	select {
	case <-done:
	case <-time.After(testkit.Patience):
		t.Fatal("still waits")
	}
	w.Close()
	if messages, missed := w.Next(time.Time{}); messages != nil || missed {
		t.Errorf("after Close: %v, missed %t", messages, missed)
	}
}
