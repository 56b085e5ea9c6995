package daemon

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/twillnet/twill/internal/lab/testkit"
)

func TestWatchdogIsFedTwiceInItsTime(t *testing.T) {
	for _, tc := range []struct {
		env  environment
		want time.Duration
	}{
		{environment{}, 0},
		{environment{"WATCHDOG_USEC": "30000000"}, 15 * time.Second},
		{environment{"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "42"}, 15 * time.Second},
		{environment{"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "41"}, 0},
	} {
		if got, err := watchdog(tc.env, 42); err != nil || got != tc.want {
			t.Errorf("%v: every %v, %v, want %v", tc.env, got, err, tc.want)
		}
	}
	for _, text := range []string{"soon", "-1", "0", "99999999999999999999"} {
		if _, err := watchdog(environment{"WATCHDOG_USEC": text}, 42); ExitCode(err) != 2 || !strings.Contains(err.Error(), "WATCHDOG_USEC") {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestServiceManagerHearsThatTheDaemonIsAliveOnceItIsReady(t *testing.T) {
	manager := listenForNotify(t)
	h := newRig(t)
	h.daemon.notifySocket = manager.path
	h.daemon.watchdog = time.Millisecond
	h.start(t)
	for i, want := range []string{"READY=1\nSTATUS=ready", "WATCHDOG=1", "WATCHDOG=1"} {
		if got := manager.next(t); got != want {
			t.Errorf("message %d: %q, want %q", i, got, want)
		}
	}
}

func TestServiceManagerThatDoesNotReadHoldsUpNothing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	manager, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	testkit.Must(t, err)
	defer manager.Close()
	other, err := net.Dial("unixgram", path)
	testkit.Must(t, err)
	defer other.Close()
	for err == nil { // until its queue is full
		testkit.Must(t, other.SetWriteDeadline(time.Now().Add(10*time.Millisecond)))
		_, err = other.Write([]byte("WATCHDOG=1"))
	}
	ended := make(chan error, 1)
	go func() { ended <- notify(path, notifyAlive) }()
	if err := testkit.Receive(t, "the notification is given up", ended); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("%v, want a timeout", err)
	}
}
