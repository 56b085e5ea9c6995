package daemon

import (
	"context"
	"os"
	"sync"
	"time"

	"github.com/twillnet/twill/internal/host/rules"
	"github.com/twillnet/twill/internal/probe"
	"github.com/twillnet/twill/internal/status"
	"github.com/twillnet/twill/internal/version"
	"github.com/twillnet/twill/metrics"
)

// state is the status of the daemon as last published. Status, readiness and metrics are
// read from it, from any goroutine, as long as the process runs.
type state struct {
	mu sync.RWMutex
	// doc is the document without the parts that are read on request: uptime and
	// the state of the data plane.
	doc status.Document
	// dp is nil before the data plane is open and after it is closed.
	dp dataPlane
	// sampled stops the sampling of dp's counters; nil if they are not sampled.
	sampled  context.CancelFunc
	activity status.Activity
	probes   *probe.Loop // nil if peers are not probed
	// rules are nil until some are kept.
	rules *rules.Rules
	// store reports whether the lease store answers; nil if it always does.
	store storeHealth
	// restarts count how often the session opened the data plane again.
	restarts [metrics.NumRestarts]uint64
}

// storeHealth reports whether a lease store that others run answers. Its methods may be
// called from any goroutine.
type storeHealth interface {
	// Away returns when the store stopped answering, and why.
	Away() (since time.Time, why error)
	// Watched reports whether changes in the store arrive as they happen.
	Watched() bool
}

// samplePeriod is how often the peers' counters are read, to know when each
// peer was last active.
const samplePeriod = time.Second

// newState returns the state of a daemon that has just started and reads its
// leases from source.
func newState(source, waiting string) *state {
	return &state{doc: status.Document{
		Version: version.String(),
		PID:     os.Getpid(),
		Started: time.Now(),
		Waiting: waiting, WaitingReason: metrics.WaitStore.String(),
		Source: status.Source{Name: source},
	}}
}

// waitFor publishes what a daemon without a session is waiting for.
func (s *state) waitFor(reason metrics.Wait, what string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.doc.Waiting, s.doc.WaitingReason = what, reason.String()
}

// stop publishes that the daemon is stopping.
func (s *state) stop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.doc.Stopping = true
}

// restarted counts that the data plane was closed to be opened again.
func (s *state) restarted(why metrics.Restart) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.restarts[why]++
}

// watchStore makes the state include whether the store answers.
func (s *state) watchStore(h storeHealth) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.store = h
}

// publish replaces the published state of the session. It is called from the
// network namespace of the data plane dp; when it returns, the previous data plane
// is no longer used and can be closed.
func (s *state) publish(doc status.Document, dp dataPlane, r *rules.Rules) {
	s.mu.Lock()
	defer s.mu.Unlock()
	doc.Version, doc.PID, doc.Started, doc.Stopping = s.doc.Version, s.doc.PID, s.doc.Started, s.doc.Stopping
	doc.Settings, doc.Source.Name = s.doc.Settings, s.doc.Source.Name
	s.doc, s.rules = doc, r
	if dp == s.dp {
		return
	}
	if s.sampled != nil {
		s.sampled()
		s.sampled = nil
	}
	s.dp = dp
	if dp != nil {
		ctx, cancel := context.WithCancel(context.Background())
		s.sampled = cancel
		go s.sample(ctx)
	}
}

// sample reads the counters of the data plane's peers until ctx is done, but
// only if those of its shards have changed: there are few shards, but maybe
// thousands of peers.
func (s *state) sample(ctx context.Context) {
	ticks := time.NewTicker(samplePeriod)
	defer ticks.Stop()
	var seen uint64 // packets of all shards
	again := false
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-ticks.C:
			s.mu.RLock()
			if ctx.Err() == nil { // otherwise dp may be closed
				n := packets(s.dp.Counters())
				moved := n != seen
				seen = n
				if moved || again {
					s.activity.Note(s.dp.Status().Peers, now)
				}
				again = moved // a packet is counted for its peer after its shard
			}
			s.mu.RUnlock()
		}
	}
}

// packets returns how many packets the shards have carried, both ways.
func packets(shards []*metrics.Shard) (n uint64) {
	for _, c := range shards {
		n += c.TX.Packets.Load() + c.RX.Packets.Load()
	}
	return n
}

// document returns the current document.
func (s *state) document() status.Document {
	s.mu.RLock()
	defer s.mu.RUnlock()
	d := s.doc
	d.Uptime = time.Since(d.Started).Seconds()
	if s.store != nil {
		if since, why := s.store.Away(); why != nil {
			d.Source.AwaySince, d.Source.Away = since, why.Error()
		}
	}
	var counters []*metrics.Shard
	if s.dp != nil {
		if dp := s.dp.Status(); len(dp.Devices) > 0 { // otherwise there is nothing to report
			s.activity.Note(dp.Peers, time.Now())
			s.dp.SetIdle(dp.Peers)
			if s.probes != nil {
				s.probes.Fill(dp.Peers)
			}
			d.Dataplane = &dp
		}
		counters = s.dp.Counters()
	}
	d.Shards, d.Drops = status.Summarize(counters)
	d.Rules = rulesOf(s.rules)
	d.Privileges = privileges()
	waitForRules(&d)
	return d
}

// rulesOf returns the document's section about the rules; nil if there are
// none.
func rulesOf(r *rules.Rules) *status.Rules {
	if r == nil {
		return nil
	}
	now := r.Status()
	d := &status.Rules{
		NFTables: now.Wanted.NFTables, Masquerade: now.Wanted.Masquerade,
		RandomFully: now.Wanted.RandomFully, Forward: now.Wanted.Forward,
		Written: now.Written, Checked: now.Checked, Missing: now.Missing, Unwritable: now.Unwritable,
	}
	if now.Problem != nil {
		d.Problem = now.Problem.Error()
	}
	return d
}

func (s *state) waiting() string {
	s.mu.RLock()
	defer s.mu.RUnlock()
	d := s.doc
	d.Rules = rulesOf(s.rules)
	waitForRules(&d)
	return d.Waiting
}

// waitForRules makes a node that waits for nothing else wait for the masquerading
// rules. Without them, packets of pods that leave the network have a source to which no
// answer can be routed.
func waitForRules(d *status.Document) {
	if r := d.Rules; d.Waiting == "" && r != nil && r.Masquerade && r.Problem != "" {
		d.Waiting, d.WaitingReason = waitsForRules+": "+r.Problem, metrics.WaitRules.String()
	}
}

const waitsForRules = "the firewall rules"

// peers returns the peers of the data plane.
func (s *state) peers() []status.Peer {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.dp == nil {
		return nil
	}
	return s.dp.Status().Peers
}

// traffic returns what each backend has carried; nil if there is no data plane.
func (s *state) traffic() []metrics.BackendTraffic {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.dp == nil {
		return nil
	}
	return s.dp.Traffic()
}

func (s *state) counters() []*metrics.Shard {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.dp == nil {
		return nil
	}
	return s.dp.Counters()
}
