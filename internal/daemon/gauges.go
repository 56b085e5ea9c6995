package daemon

import (
	"time"

	"github.com/twillnet/twill/internal/status"
	"github.com/twillnet/twill/metrics"
)

// gauges returns the state for the metrics.
func (s *state) gauges() metrics.State {
	s.mu.RLock()
	defer s.mu.RUnlock()
	d := s.doc
	d.Rules = rulesOf(s.rules)
	waitForRules(&d)
	st := metrics.State{
		Waiting:  metrics.WaitOf(d.WaitingReason),
		Leases:   d.Source.Leases,
		Source:   metrics.Source{OK: d.Source.LastError == "", Watched: !d.Source.Updated.IsZero(), Updated: d.Source.Updated},
		Rules:    rulesGauges(d.Rules),
		Backend:  metrics.BackendInfo{Configured: d.Backend, Reason: d.BackendWhy},
		Restarts: s.restarts,
	}
	if s.store != nil {
		if since, why := s.store.Away(); why != nil {
			st.Source.Away = max(time.Since(since), time.Nanosecond)
		}
		st.Source.Watched = s.store.Watched()
	}
	if d.Lease != nil {
		st.LeaseExpiry = d.Lease.Expiration
	}
	if len(d.Backends) > 0 {
		st.Backend.Backend = d.Backends[0]
	}
	if s.dp != nil {
		planeGauges(&st, s.dp)
	}
	return st
}

// planeGauges adds the state of an open data plane.
func planeGauges(st *metrics.State, plane dataPlane) {
	dp := plane.Status()
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
	st.Traffic = plane.Traffic()
	st.Offloads = make(map[string]bool, len(dp.Offloads))
	for _, o := range dp.Offloads {
		st.Offloads[o.Name] = o.InForce
	}
}

// rulesGauges returns nil if no rules are kept.
func rulesGauges(r *status.Rules) *metrics.Rules {
	if r == nil {
		return nil
	}
	return &metrics.Rules{InForce: r.Problem == "", Writes: r.Written, Checked: r.Checked}
}
