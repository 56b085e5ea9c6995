// Package doctor looks at a node for what keeps its pods from talking to those
// of other nodes: kernel, sysctls, firewall, paths to the peers, leases, clock.
// Each finding says what is wrong and the command that mends it.
//
// It changes nothing. What it asks of the kernel is the network namespace of the
// calling thread; it starts no goroutines.
package doctor

import (
	"context"
	"fmt"
	"io"
	"text/tabwriter"

	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/internal/status"
	"github.com/twillnet/twill/lease"
)

// Level is how a finding is to be taken.
type Level string

// The levels, from good to bad.
const (
	OK   Level = "ok"
	Warn Level = "warn" // it may harm, or could not be looked at
	Bad  Level = "bad"  // packets are lost, or will be
)

// Finding is the result of one look.
type Finding struct {
	Check  string `json:"check"` // what was looked at: "path-mtu"
	Level  Level  `json:"level"`
	Text   string `json:"text"`
	Remedy string `json:"remedy,omitempty"` // a command for the shell of this node, unless it names another
}

// Node is what is known about the node before it is looked at. What could not
// be had is nil or zero, and the error says why.
type Node struct {
	Daemon    *status.Document // of the running twilld
	DaemonErr error
	Env       lease.SubnetEnv // the subnet file
	EnvErr    error
	Config    *lease.Config
	Leases    []lease.Lease
	StoreErr  error // why there is no Config, or are no Leases

	// What the flags of twilld ask for; a daemon that keeps rules tells better.
	Forward     bool // --iptables-forward-rules
	RandomFully bool // not --ip-masq-fully-random-disable
}

// host is what tests replace.
type host struct {
	tun   string // device file
	clock func(*unix.Timex) (state int, err error)
}

var thisHost = host{"/dev/net/tun", unix.Adjtimex}

// examination is one look at a node.
type examination struct {
	Node
	host
	reached  *reach // of reach
	reachErr error
}

// checks are all there are, in the order of the output: what others rest on
// comes first.
var checks = []struct {
	name string
	run  func(*examination, context.Context) []Finding
}{
	{"daemon", (*examination).daemon},
	{"tun", (*examination).tunDevice},
	{"offloads", (*examination).offloads},
	{"store", (*examination).store},
	{"lease", (*examination).ownLease},
	{"subnet-file", (*examination).subnetFile},
	{"forwarding", (*examination).forwarding},
	{"rp-filter", (*examination).reversePath},
	{"rules", (*examination).rules},
	{"forward-policy", (*examination).forwardPolicy},
	{"udp-port", (*examination).udpPort},
	{"bridge", (*examination).bridge},
	{"peers", (*examination).peers},
	{"clock", (*examination).synchronised},
}

// Examine looks at everything. It stops early if ctx is done.
func Examine(ctx context.Context, n Node) []Finding {
	return (&examination{Node: n, host: thisHost}).all(ctx)
}

func (x *examination) all(ctx context.Context) []Finding {
	var all []Finding
	for _, c := range checks {
		if ctx.Err() != nil {
			return append(all, Finding{c.name, Warn, "not looked at: " + context.Cause(ctx).Error(), ""})
		}
		found := c.run(x, ctx)
		for i := range found {
			found[i].Check = c.name
		}
		all = append(all, found...)
	}
	return all
}

// Worst returns the worst level of findings.
func Worst(findings []Finding) Level {
	worst := OK
	for _, f := range findings {
		if f.Level == Bad || worst == OK {
			worst = f.Level
		}
	}
	return worst
}

// Write writes findings for people.
func Write(w io.Writer, findings []Finding) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, f := range findings {
		fmt.Fprintf(t, "%s\t%s\t%s\n", f.Level, f.Check, f.Text)
		if f.Remedy != "" {
			fmt.Fprintf(t, "\t\t→ %s\n", f.Remedy)
		}
	}
	return t.Flush()
}

func okf(format string, args ...any) Finding {
	return Finding{Level: OK, Text: fmt.Sprintf(format, args...)}
}

func warnf(remedy, format string, args ...any) Finding {
	return Finding{Level: Warn, Text: fmt.Sprintf(format, args...), Remedy: remedy}
}

func badf(remedy, format string, args ...any) Finding {
	return Finding{Level: Bad, Text: fmt.Sprintf(format, args...), Remedy: remedy}
}
