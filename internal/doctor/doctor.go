// Package doctor diagnoses what keeps a node's pods from reaching those of
// other nodes: kernel, sysctls, firewall, paths to the peers, leases, clock.
// Each finding states what is wrong and the command that repairs it.
//
// It changes nothing. It examines the network namespace of the calling thread, and
// starts no goroutines.
package doctor

import (
	"context"
	"fmt"
	"io"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/internal/status"
	"github.com/twillnet/twill/internal/textpage"
	"github.com/twillnet/twill/lease"
)

// Level is the severity of a finding.
type Level string

// The levels, from good to bad.
const (
	OK   Level = "ok"
	Warn Level = "warn" // packets may be lost, or it could not be checked
	Bad  Level = "bad"  // packets are lost, or will be
)

// Finding is one result of a check.
type Finding struct {
	Check  string `json:"check"` // the name of the check: "rp-filter"
	Level  Level  `json:"level"`
	Text   string `json:"text"`
	Remedy string `json:"remedy,omitempty"` // a command to run on this node, unless it names another node
	Narrow bool   `json:"narrow,omitempty"` // the path loses large packets only
}

// Node is what is known about the node before the checks. Data that could not be
// obtained is nil or zero, with the reason in the error.
type Node struct {
	Daemon    *status.Document // of the running twilld
	DaemonErr error
	Env       lease.SubnetEnv // the subnet file
	EnvErr    error
	Config    *lease.Config
	Leases    []lease.Lease
	StoreErr  error // why Config or Leases is missing

	// The values of twilld's flags. The status of a daemon that keeps rules takes
	// precedence.
	Forward     bool // --iptables-forward-rules
	RandomFully bool // not --ip-masq-fully-random-disable
}

// host is the access to the host, which tests replace.
type host struct {
	tun   string // device file
	clock func(*unix.Timex) (state int, err error)
	// selfTest is that of the kernel path. It returns why the path cannot be used.
	selfTest func(context.Context) error
}

var thisHost = host{"/dev/net/tun", unix.Adjtimex, daemonSelfTest}

// examination is a run of all checks.
type examination struct {
	Node
	host
	reached  *reach // of reach
	reachErr error
	ruleset  *ruleset // of nftables
}

// checks lists the checks in the order of the output: those that others depend
// on come first.
var checks = []struct {
	name string
	run  func(*examination, context.Context) []Finding
}{
	{"daemon", (*examination).daemon},
	{"privileges", (*examination).privileges},
	{"tun", (*examination).tunDevice},
	{"offloads", (*examination).offloads},
	{"store", (*examination).store},
	{"lease", (*examination).ownLease},
	{"subnet-file", (*examination).subnetFile},
	{"own-subnet", (*examination).ownSubnet},
	{"devices", (*examination).enslaved},
	{"forwarding", (*examination).forwarding},
	{"rp-filter", (*examination).reversePath},
	{"rules", (*examination).rules},
	{"forward-policy", (*examination).forwardPolicy},
	{"masquerade", (*examination).masquerade},
	{"udp-port", (*examination).udpPort},
	{"kernel-path", (*examination).kernelPath},
	{"bridge", (*examination).bridge},
	{"peers", (*examination).peers},
	{"clock", (*examination).synchronised},
}

// Examine runs the checks with these names, or all if none is named. It stops early if
// ctx is done.
func Examine(ctx context.Context, n Node, names ...string) []Finding {
	return (&examination{Node: n, host: thisHost}).all(ctx, names)
}

func (x *examination) all(ctx context.Context, names []string) []Finding {
	var all []Finding
	for _, c := range checks {
		if len(names) > 0 && !slices.Contains(names, c.name) {
			continue
		}
		if ctx.Err() != nil {
			return append(all, Finding{Check: c.name, Level: Warn, Text: "not checked: " + context.Cause(ctx).Error()})
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

// alike is how many findings of one check and level Write prints: all peers of a large
// cluster may be silent at once.
const alike = 20

// Write writes findings as a table of 80 columns, with each remedy in one line below its
// finding. Of findings of one check and level that follow each other, it writes the first
// and the number of the rest.
func Write(w io.Writer, findings []Finding) error {
	widest := 0
	for _, f := range findings {
		widest = max(widest, len(f.Check))
	}
	var p textpage.Page
	written := 0 // of the check and level of the previous finding
	for i, f := range findings {
		head := fmt.Sprintf("%-4s  %-*s  ", f.Level, widest, f.Check)
		if i == 0 || f.Check != findings[i-1].Check || f.Level != findings[i-1].Level {
			written = 0
		}
		if written++; written <= alike {
			p.Text(len(head), head, f.Text)
			if f.Remedy != "" {
				p.Line("%*s→ %s", len(head), "", f.Remedy)
			}
		} else if i+1 == len(findings) || f.Check != findings[i+1].Check || f.Level != findings[i+1].Level {
			p.Text(len(head), head, fmt.Sprintf("and %d more of these: twill doctor --json lists them", written-alike))
		}
	}
	_, err := io.WriteString(w, p.String())
	return err
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
