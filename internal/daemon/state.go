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

// state is the status of the daemon as it was published last. Status, readiness and
// metrics are read from it, from any goroutine, at any time from start to end.
type state struct {
	mu sync.RWMutex
	// doc is the document without the parts that are read on request: uptime and
	// the state of the data plane.
	doc status.Document
	// dp is nil before the data plane is open and after it is closed.
	dp dataPlane
	// sampled stops the sampling of dp's counters; nil if there is none.
	sampled  context.CancelFunc
	activity status.Activity
	probes   *probe.Loop // nil if peers are not probed
	// rules are nil until some are kept.
	rules *rules.Rules
	// away returns when the store stopped answering; nil if the store does not
	// keep track.
	away func() (since time.Time, why error)
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
		Waiting: waiting,
		Source:  status.Source{Name: source},
	}}
}

// waitFor publishes what a daemon without a session is waiting for.
func (s *state) waitFor(what string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.doc.Waiting = what
}

// watchSource makes the document include the time at which the store stopped
// answering, as returned by away.
func (s *state) watchSource(away func() (since time.Time, why error)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.away = away
}

// publish replaces the published state of the session. It is called from the
// network namespace of the data plane dp; when it returns, the previous data plane
// is no longer used and can be closed.
func (s *state) publish(doc status.Document, dp dataPlane, r *rules.Rules) {
	s.mu.Lock()
	defer s.mu.Unlock()
	doc.Version, doc.PID, doc.Started = s.doc.Version, s.doc.PID, s.doc.Started
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
	if s.away != nil {
		if since, why := s.away(); why != nil {
			d.Source.AwaySince, d.Source.Away = since, why.Error()
		}
	}
	var counters []*metrics.Shard
	if s.dp != nil {
		if dp := s.dp.Status(); len(dp.Devices) > 0 { // otherwise it has none
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
	d.Waiting = waitingFor(d.Waiting, d.Rules)
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
		Written: now.Written, Checked: now.Checked,
	}
	if now.Problem != nil {
		d.Problem = now.Problem.Error()
	}
	return d
}

func (s *state) waiting() string {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return waitingFor(s.doc.Waiting, rulesOf(s.rules))
}

// waitingFor returns what the node is waiting for: as published by the session, or
// else the masquerading rules, without which packets of pods that leave the network
// carry a source that nothing can answer to.
func waitingFor(session string, r *status.Rules) string {
	if session == "" && r != nil && r.Masquerade && r.Problem != "" {
		return "the firewall rules: " + r.Problem
	}
	return session
}

// peers returns the peers of the data plane.
func (s *state) peers() []status.Peer {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.dp == nil {
		return nil
	}
	return s.dp.Status().Peers
}

func (s *state) counters() []*metrics.Shard {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.dp == nil {
		return nil
	}
	return s.dp.Counters()
}

// gauges returns the state for the metrics.
func (s *state) gauges() metrics.State {
	s.mu.RLock()
	defer s.mu.RUnlock()
	st := metrics.State{
		Leases:   s.doc.Source.Leases,
		SourceOK: s.doc.Source.LastError == "",
	}
	if s.away != nil {
		if since, why := s.away(); why != nil {
			st.SourceAway = time.Since(since)
		}
	}
	st.Backend = metrics.BackendInfo{Configured: s.doc.Backend, Reason: s.doc.BackendWhy}
	if len(s.doc.Ways) > 0 {
		st.Backend.Backend = s.doc.Ways[0]
	}
	if s.dp == nil {
		return st
	}
	dp := s.dp.Status()
	st.Peers = len(dp.Peers)
	for _, p := range dp.Peers {
		if p.MTU > 0 {
			st.Narrow++
		}
	}
	if len(dp.Devices) > 0 {
		dev := dp.TUN()
		if dev == nil {
			dev = &dp.Devices[0]
		}
		st.Device = metrics.DeviceInfo{Name: dev.Name, Kind: dev.Kind, Reason: dev.Why}
	}
	st.Offloads = make(map[string]bool, len(dp.Offloads))
	for _, o := range dp.Offloads {
		st.Offloads[o.Name] = o.InForce
	}
	return st
}
