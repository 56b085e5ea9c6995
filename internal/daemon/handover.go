package daemon

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/twillnet/twill/internal/daemon/handover"
	"github.com/twillnet/twill/internal/logging"
)

// The TUN queues and UDP sockets of the data plane are passed from one run to the
// next, so that packets are queued in them meanwhile or, if a new process takes
// over from a running one, are read without a gap:
//
//	new process                                 running process
//	requests the descriptors  ───────────────►  offer: sends copies, continues
//	opens its data plane with them
//	ready                     ───────────────►  handOver: stops forwarding
//	forwards                  ◄───────────────  stopped
//	binds the control socket  ◄─── ends ──────

// errHandedOver ends a daemon after another has taken over from it.
var errHandedOver = errors.New("another twilld has taken over")

// errReclaimed is why a process that is ready to take over does not.
var errReclaimed = errors.New("the data plane was reopened meanwhile; repeat the takeover")

// endsWithin is how long the old process may take to end once it has stopped
// forwarding.
const endsWithin = 15 * time.Second

// inherit takes over the descriptors of an earlier run: from the running process,
// if so configured, or else from the service manager.
func (d *daemon) inherit(lookup func(string) string, pid int) (err error) {
	if !d.options.takeover {
		if d.inherited, err = handover.Inherit(lookup, pid); err != nil {
			return err
		}
		// This process has the descriptors now, and stores those that it keeps again.
		return handover.Forget(d.notifySocket, d.inherited.Names())
	}
	if d.takeover, err = handover.Request(d.options.controlSocket); err != nil {
		return err
	}
	d.inherited = d.takeover.Descriptors
	d.stored = d.inherited.Names() // by the other process
	if d.watchdog == 0 {
		d.watchdog = d.takeover.Watchdog
	}
	d.log.Info("taking over from the running twilld", logging.KeyDescriptors, len(d.inherited))
	return nil
}

// notForwarding is why a process that forwards nothing refuses a handover.
const notForwarding = "it is not forwarding; \"twill status\" shows what it is waiting for. Restart it instead"

// acceptHandover passes a request to take over to the session.
func (d *daemon) acceptHandover(w http.ResponseWriter, r *http.Request) {
	o, err := handover.Accept(w, r)
	if err != nil {
		d.log.Warn("handover refused", logging.KeyError, err)
		return
	}
	select {
	case d.handovers <- o:
	case <-time.After(retryAfter): // there is no session yet, or it has ended
		_ = o.Refuse(notForwarding)
	}
}

// keepDescriptors stores the data plane's descriptors with the service manager. The manager
// ignores a process that takes over until the handover is complete, so succeed calls
// keepDescriptors again.
func (s *session) keepDescriptors() {
	if s.notifySocket == "" || s.takeover != nil {
		return
	}
	fds := handover.Descriptors(s.applied.plane.Descriptors())
	err := errors.Join(handover.Forget(s.notifySocket, s.stored), handover.Store(s.notifySocket, fds))
	s.stored = fds.Names()
	if err != nil {
		s.log.Warn("cannot keep descriptors, a restart loses packets", logging.KeyError, err)
	}
}

// reclaimDescriptors keeps copies of the descriptors of the data plane that is
// about to be closed, for the one that replaces it.
func (s *session) reclaimDescriptors() {
	fds, err := handover.Copy(s.applied.plane.Descriptors())
	s.inherited = fds
	err = errors.Join(err, handover.Forget(s.notifySocket, s.stored))
	s.stored = nil
	if s.offered != nil { // another process has copies of these descriptors
		_ = s.offered.Close()
		s.offered = nil
	}
	if err != nil {
		s.log.Warn("cannot keep descriptors, reopening the data plane loses packets", logging.KeyError, err)
	}
}

// offer sends the descriptors to the process that takes over, and waits for it
// in the background. This process continues meanwhile, and stays in service if
// the other fails.
func (s *session) offer(ctx context.Context, o *handover.Offer) {
	switch {
	case s.offered != nil:
		_ = o.Refuse(fmt.Sprintf("another process (pid %d) is already taking over; stop that one first", s.offered.PID()))
		return
	case s.applied.plane == nil:
		_ = o.Refuse(notForwarding)
		return
	}
	fds, err := handover.Copy(s.applied.plane.Descriptors())
	if err != nil {
		s.log.Warn("handover failed", logging.KeyError, err)
		_ = o.Close()
		return
	}
	s.log.Info("handover requested", logging.KeyPID, o.PID(), logging.KeyDescriptors, len(fds))
	s.offered = o
	go func() {
		err := errors.Join(o.Send(fds, s.watchdog), fds.Close())
		if err == nil {
			err = o.Ready()
		}
		select {
		case s.answers <- answer{o, err}:
		case <-ctx.Done():
			_ = o.Close()
		}
	}()
}

// answer is the outcome of an offer; err is nil if the other process is ready.
type answer struct {
	*handover.Offer
	err error
}

// handOver stops forwarding once the other process is ready to forward. It
// returns nil if the other process failed.
func (s *session) handOver(a answer) error {
	if a.err != nil {
		if s.offered == a.Offer {
			s.offered = nil
		}
		s.log.Warn("handover failed, this process continues", logging.KeyError, a.err)
		_ = a.Close()
		return nil
	}
	if s.offered != a.Offer {
		// Its descriptors have been reclaimed since the other process reported that it is
		// ready. That process ends, since this one still serves on the control socket.
		s.log.Warn("handover failed, this process continues", logging.KeyError, errReclaimed)
		_ = a.Close()
		return nil
	}
	dp := s.halt()
	// The service manager must know the other process before that process sends it
	// messages. The watchdog's time starts again, since the other process first waits for
	// the end of this one.
	pid := a.PID()
	if pid > 0 {
		s.notifyManager(fmt.Sprintf("MAINPID=%d\n%s", pid, notifyAlive))
	}
	if err := a.Stopped(); err != nil {
		s.log.Warn("handover: cannot reach the other process", logging.KeyError, err)
	}
	if dp != nil { // the other process already forwards
		if err := dp.Close(); err != nil {
			s.log.Warn("cannot close the data plane", logging.KeyError, err)
		}
	}
	s.log.Info("handed over", logging.KeyPID, pid)
	// This must be closed last, since the other process waits for it.
	s.serving = slices.Insert(s.serving, 0, a.Close)
	return errHandedOver
}

// begin closes inherited descriptors that are unused and, if this process is taking
// over, makes the old one stop forwarding. From then on no packet is forwarded until
// the data plane runs.
func (s *session) begin() {
	if err := s.inherited.Close(); err != nil {
		s.log.Warn("unused descriptors not closed", logging.KeyError, err)
	}
	if s.takeover == nil {
		return
	}
	if err := s.takeover.Ready(); err != nil {
		s.log.Warn("takeover: forwarding starts although the other process may still be forwarding", logging.KeyError, err)
	}
}

// succeed waits until the old process has ended, if this one is taking over, and
// then serves in its place.
func (s *session) succeed() error {
	t := s.takeover
	if t == nil {
		return nil
	}
	err := t.Ended(endsWithin)
	s.takeover = nil
	s.keepDescriptors()
	return errors.Join(err, t.Close(), s.serve())
}
