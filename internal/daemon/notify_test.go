package daemon

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/twillnet/twill/internal/daemon/handover"
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

func TestServiceThatCannotStartTakesAWhileToFail(t *testing.T) {
	for name, of := range map[string]struct {
		socket   string
		takeover bool
		rests    bool
	}{
		"a service":                {socket: "@none", rests: true},
		"started by hand":          {},
		"taking over in a service": {socket: "@none", takeover: true},
	} {
		t.Run(name, func(t *testing.T) {
			h := newRig(t)
			h.daemon.notifySocket = of.socket
			if of.takeover {
				old := newRig(t)
				old.daemon.handovers = make(chan *handover.Offer)
				old.start(t)
				var err error
				h.daemon.takeover, err = handover.Request(old.options.controlSocket)
				testkit.Must(t, err)
			}
			var rested time.Duration
			h.daemon.rest = func(_ context.Context, d time.Duration) { rested = d }
			h.wires.err = errors.New("no such interface")
			h.options.iface = []string{"eth9"}
			h.launch(t)
			if err := h.wait(t); err == nil || !strings.Contains(err.Error(), "no such interface") {
				t.Errorf("%v", err)
			}
			if (rested != 0) != of.rests || rested > failsAfter {
				t.Errorf("it rests for %s", rested)
			}
		})
	}
}
