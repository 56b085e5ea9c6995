package doctor

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/twillnet/twill/internal/host/rules"
)

// table is an iptables table.
type table struct {
	program string // "iptables"
	policy  map[string]string
	chains  map[string][]string // rules in order, in the syntax of iptables -S
	hits    map[string]uint64   // packets by rule, or by "-P" and chain
}

// programTimeout bounds the run time of a program that doctor runs.
const programTimeout = 20 * time.Second

// output runs a program and returns its output. The program is killed if it
// hangs.
func output(ctx context.Context, program string, args ...string) ([]byte, error) {
	limited, cancel := context.WithTimeout(ctx, programTimeout)
	defer cancel()
	cmd := exec.CommandContext(limited, program, args...)
	cmd.WaitDelay = time.Second
	out, err := cmd.Output()
	if err != nil && limited.Err() != nil && ctx.Err() == nil {
		err = fmt.Errorf("it did not exit within %s: check what it is waiting for (ps -ef)", programTimeout)
	}
	return out, err
}

// readChains lists a table with its counters.
func readChains(ctx context.Context, program, name string) (*table, error) {
	out, err := output(ctx, program, "-w", "5", "-t", name, "-S", "-v")
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			err = fmt.Errorf("%w: %s", err, strings.TrimSpace(string(exit.Stderr)))
		}
		return nil, fmt.Errorf("list rules: %s -t %s -S: %w", program, name, err)
	}
	return parseChains(program, string(out)), nil
}

func parseChains(program, text string) *table {
	t := &table{program, map[string]string{}, map[string][]string{}, map[string]uint64{}}
	for line := range strings.Lines(text) {
		line, packets := cutCounters(strings.TrimSpace(line))
		words := strings.Fields(line)
		if len(words) < 2 {
			continue
		}
		switch words[0] {
		case "-P":
			t.policy[words[1]] = strings.Join(words[2:], "")
			t.hits["-P "+words[1]] = packets
			t.chains[words[1]] = []string{}
		case "-N":
			t.chains[words[1]] = []string{}
		case "-A":
			t.chains[words[1]] = append(t.chains[words[1]], line)
			t.hits[line] += packets
		}
	}
	return t
}

// counters is what iptables -S -v writes before the target, or at the end of a line
// without one.
var counters = regexp.MustCompile(`^(.*) -c ([0-9]+) [0-9]+( -[jg] .*|)$`)

// cutCounters returns a line without its counters, and the number of packets.
func cutCounters(line string) (rest string, packets uint64) {
	parts := counters.FindStringSubmatch(line)
	if parts == nil {
		return line, 0
	}
	packets, _ = strconv.ParseUint(parts[2], 10, 64)
	return parts[1] + parts[3], packets
}

// verdict returns what a built-in chain does with a packet, in a table that filters.
func (t *table) verdict(chain string, p Packet) Verdict {
	var v Verdict
	target, rule := t.walk(chain, p, &v.Unless, 0)
	switch v.Rule = rule; {
	case target == "" && t.policy[chain] == "DROP":
		v.Rule, v.Remedy = policyDrop(chain), fmt.Sprintf("%s -P %s ACCEPT", t.program, chain)
	case target == "", target == "ACCEPT":
		v.Accept = true
	default:
		v.Remedy = t.deleteRule(rule)
	}
	return v
}

// policyDrop names the policy of a built-in chain that drops.
func policyDrop(chain string) string { return "the policy DROP of " + chain }

// decisive are the targets that end the way of a packet through a chain.
var decisive = []string{"ACCEPT", "DROP", "REJECT", "MASQUERADE", "SNAT", "NETMAP", "RETURN"}

// deepest bounds jumps; iptables refuses loops.
const deepest = 32

// walk returns the target of the rule that decides in a chain, or "" if the packet passes
// it undecided. unless is set, if it is empty, to the first rule before that could lead to
// another verdict: whether it matches cannot be determined here.
func (t *table) walk(chain string, p Packet, unless *string, depth int) (target, rule string) {
	for _, line := range t.chains[chain] {
		m, target := match(line, p)
		jump := t.chains[target] != nil && depth < deepest
		switch {
		case m == no, !jump && !slices.Contains(decisive, target): // LOG, MARK, …
		case m == maybe:
			*unless = cmp.Or(*unless, line)
		case jump:
			if target, rule := t.walk(target, p, unless, depth+1); target != "" {
				return target, rule
			}
		case target == "RETURN":
			return "", ""
		default:
			return target, line
		}
	}
	return "", ""
}

// answer is whether a rule matches a packet.
type answer int

const (
	no answer = iota
	maybe
	yes
)

// match evaluates one rule. Unknown conditions make the answer maybe.
func match(line string, p Packet) (m answer, target string) {
	words := rules.Words(line)
	m = yes
	not := false
	meets := func(b bool) {
		if b == not {
			m = no
		}
		not = false
	}
	unsure := func() {
		m = min(m, maybe)
		not = false
	}
	for i := 2; i < len(words); i++ {
		value := ""
		if i+1 < len(words) {
			value = words[i+1]
		}
		switch words[i] {
		case "!":
			not = true
			continue
		case "-j", "-g":
			return m, value
		case "-m":
			if value == "comment" || value == "udp" || value == "tcp" {
				break
			}
			if value == "conntrack" || value == "state" || value == "mark" && p.unmarked {
				break // decided by their options, below
			}
			unsure()
		case "--mark":
			mark, _, _ := strings.Cut(value, "/")
			if n, err := strconv.ParseUint(mark, 0, 32); err != nil || !p.unmarked {
				unsure()
			} else {
				meets(n == 0) // under any mask
			}
		case "--comment":
		case "--ctstate", "--state":
			// The first packet of a connection is NEW.
			meets(slices.Contains(strings.Split(value, ","), "NEW"))
		case "-p":
			if p.Proto == "" {
				unsure()
			} else {
				meets(value == p.Proto)
			}
		case "--dport":
			from, to, ranged := strings.Cut(value, ":")
			if !ranged {
				to = from
			}
			a, errA := strconv.Atoi(from)
			b, errB := strconv.Atoi(to)
			if errA != nil || errB != nil || p.Port == 0 {
				unsure()
			} else {
				meets(a <= p.Port && p.Port <= b)
			}
		case "-i", "-o":
			name := p.In
			if words[i] == "-o" {
				name = p.Out
			}
			prefix, any := strings.CutSuffix(value, "+")
			switch {
			case name == "":
				unsure()
			case any:
				meets(strings.HasPrefix(name, prefix))
			default:
				meets(name == value)
			}
		case "-s", "-d":
			a := p.Src
			if words[i] == "-d" {
				a = p.Dst
			}
			net, err := netip.ParsePrefix(value)
			if err != nil || !a.IsValid() {
				unsure()
			} else {
				meets(net.Contains(a))
			}
		default:
			unsure()
			continue
		}
		i++
	}
	return m, ""
}

// deleteRule returns the command that deletes a rule.
func (t *table) deleteRule(line string) string {
	return t.program + " -D" + strings.TrimPrefix(line, "-A")
}
