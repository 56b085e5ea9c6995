package daemon

import (
	"strings"
	"testing"
	"time"
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
