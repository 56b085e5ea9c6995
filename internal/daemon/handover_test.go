package daemon

import (
	"context"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/twillnet/twill/internal/daemon/handover"
	"github.com/twillnet/twill/internal/lab/testkit"
)

// paused is a data plane of which the test says when its steps go on.
type paused struct {
	*fakeDataplane
	runs    chan struct{} // closed by Run
	closing chan struct{} // Close waits for it, unless it is nil
}

func pauseIn(h *rig) *paused {
	p := &paused{fakeDataplane: h.dp, runs: make(chan struct{})}
	h.daemon.open = func(n node) (dataPlane, error) {
		_, err := h.dp.open(n)
		return p, err
	}
	return p
}

func (p *paused) Run(ctx context.Context) error {
	close(p.runs)
	return p.fakeDataplane.Run(ctx)
}

// Descriptors is called to store them.
func (p *paused) Descriptors() map[string]int {
	select {
	case <-p.runs:
	case <-time.After(testkit.Patience):
		p.note("descriptors stored before packets are forwarded")
	}
	return nil
}

func (p *paused) Close() error {
	if p.closing != nil {
		<-p.closing
	}
	return p.fakeDataplane.Close()
}

func TestPacketsAreForwardedBeforeDescriptorsAreStored(t *testing.T) {
	manager := listenForNotify(t)
	h := newRig(t)
	h.daemon.notifySocket = manager.path
	pauseIn(h)
	h.start(t)
	if calls := h.dp.calls(); strings.Contains(calls, "stored before") {
		t.Error(calls)
	}
}

func TestNewProcessForwardsWhileTheOldOneClosesItsDataPlane(t *testing.T) {
	h := newRig(t)
	h.daemon.handovers = make(chan *handover.Offer)
	p := pauseIn(h)
	p.closing = make(chan struct{})
	h.start(t)
	next, err := handover.Request(h.options.controlSocket)
	testkit.Must(t, err)
	defer next.Close()
	err = next.Ready()
	close(p.closing)
	if err != nil {
		t.Error(err)
	}
	if err := h.wait(t); err != nil {
		t.Error(err)
	}
	if calls := h.dp.calls(); !strings.HasSuffix(calls, "run ended, close") {
		t.Error(calls)
	}
}

// The program of this test runs no test with these arguments, and succeeds.
func TestReloadSaysThatTheNewProcessEndedWithoutTakingOver(t *testing.T) {
	d := &daemon{options: &options{controlSocket: filepath.Join(t.TempDir(), "twilld.sock")}}
	err := d.reload(t.Context(), []string{"-test.run=^$", "--"}, io.Discard)
	if err == nil || !strings.HasSuffix(err.Error(), "the running one continues: it exited with status 0 before it took over") {
		t.Error(err)
	}
}

// The answer of the other process waits until the session has time for it. If the data plane
// is reopened first, that process has lost its conversation, and ends.
func TestProcessThatReopensItsDataPlaneIsNotReplacedByAnEarlierOffer(t *testing.T) {
	h := newRig(t)
	offers := make(chan *handover.Offer, 1)
	l, err := net.Listen("unix", h.options.controlSocket)
	testkit.Must(t, err)
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		o, err := handover.Accept(w, r)
		if err == nil {
			err = o.Send(nil, 0)
		}
		if err != nil {
			t.Error(err)
		}
		offers <- o
	})}
	go server.Serve(l)
	defer server.Close()
	next, err := handover.Request(h.options.controlSocket)
	testkit.Must(t, err)
	defer next.Close()

	s := h.daemon.newSession(openedStore{})
	ended := make(chan error)
	close(ended)
	s.applied.plane, s.applied.stop, s.applied.ended = h.dp, func() {}, ended
	s.offered = testkit.Receive(t, "the other process asks", offers)
	ready := answer{s.offered, nil}
	s.reclaimDescriptors()
	if err := s.handOver(ready); err != nil || s.applied.plane == nil {
		t.Errorf("the process ends: %v", err)
	}
}
