package daemon

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/twillnet/twill/internal/logging"
	"github.com/twillnet/twill/internal/status"
	"github.com/twillnet/twill/lease"
)

// follower brings the data plane of a node after the lease store. What the
// node was opened with cannot change under it: another network, another
// backend, a lease that is no longer its own take a restart, which follower
// asks for in the log and in the status. Until then the rest goes on.
type follower struct {
	node
	dp    dataplane
	state *state

	// What the store told last, which is not all in force: see restart.
	set    lease.Set
	latest *lease.Config

	restart string // what a restart would change; empty: nothing
	refused string // the last error of the store; empty once it is mended
}

// apply follows one update.
func (f *follower) apply(u lease.Update) {
	if u.Err != nil {
		f.refuse(u.Err)
		return
	}
	if f.refused != "" {
		f.refused = ""
		f.log.Info("lease source good again")
	}
	if u.Config != nil {
		f.latest = u.Config
	}
	changed := f.set.Apply(u)
	f.checkRestart()
	// Leases of another network would take the peers of this one away, while
	// device and routes are still those of this one.
	if (changed || u.Config != nil) && slices.Equal(f.latest.Networks(), f.node.config.Networks()) {
		f.dp.SetLeases(f.set.Leases())
		f.log.Info("leases applied", logging.KeyLeases, f.set.Len())
	}
	f.state.change(func(d *status.Document) {
		d.Restart = f.restart
		d.Source.Leases = f.set.Len()
		d.Source.Updated = time.Now()
		d.Source.LastError, d.Source.LastErrorAt = "", time.Time{}
	})
}

// refuse remembers an error of the store, and logs it unless it is the one
// that it told last.
func (f *follower) refuse(err error) {
	if err.Error() == f.refused {
		return
	}
	f.refused = err.Error()
	f.log.Warn("lease source refused, the last good version stays in force", logging.KeyError, err)
	f.state.change(func(d *status.Document) {
		d.Source.LastError, d.Source.LastErrorAt = f.refused, time.Now()
	})
}

// checkRestart compares what the node was opened with to what the store says
// now.
func (f *follower) checkRestart() {
	var why []string
	if was, is := f.node.config.Networks(), f.latest.Networks(); !slices.Equal(was, is) {
		why = append(why, fmt.Sprintf("the network is now %s, the device and its routes are those of %s", is, was))
	}
	if was, is := f.node.config.Backend, f.latest.Backend; was.Type != is.Type || !bytes.Equal(was.Raw, is.Raw) {
		why = append(why, fmt.Sprintf("the backend is now %s, what runs is %s", describe(is), describe(was)))
	}
	if is, ok := f.set.Get(f.own.Key()); !ok {
		why = append(why, fmt.Sprintf("this node's lease %s is gone", f.own.Key()))
	} else if is.PublicIP != f.own.PublicIP || is.PublicIPv6 != f.own.PublicIPv6 {
		why = append(why, fmt.Sprintf("this node's lease %s is now that of another public IP", f.own.Key()))
	}
	restart := strings.Join(why, "; ")
	if restart != "" && restart != f.restart {
		f.log.Warn("restart needed", logging.KeyWhy, restart,
			logging.KeyRemedy, "restart twilld to take it over; until then it goes on as it was started")
	}
	f.restart = restart
}

func describe(b lease.Backend) string {
	if b.Raw == nil {
		return b.Type
	}
	return string(b.Raw)
}
