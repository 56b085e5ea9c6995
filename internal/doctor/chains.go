package doctor

import (
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
)

// table is an iptables table.
type table struct {
	program string // "iptables"
	policy  map[string]string
	chains  map[string][]string // rules in order, in the syntax of iptables -S
	hits    map[string]uint64   // packets by rule, or by "-P" and chain, if they were listed
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
		err = fmt.Errorf("it has not ended within %s: see what it waits for (ps -ef)", programTimeout)
	}
	return out, err
}

// readChains lists a table. With the flag -v the list has counters.
func readChains(ctx context.Context, program, name string, flags ...string) (*table, error) {
	out, err := output(ctx, program, append([]string{"-w", "5", "-t", name, "-S"}, flags...)...)
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

// packet is the first packet of a connection.
type packet struct {
	in, out  string // interfaces; if empty, unknown, so a rule may match
	src, dst netip.Addr
	proto    string // "udp", or empty for any
	dport    int
	unmarked bool // known not to be marked by other programs, as kube-proxy marks packets for services
}

// fate is what happens to a packet.
type fate struct {
	accept bool
	target string // of the rule
	rule   string // the deciding rule; empty if the policy decides
	// maybe holds earlier rules that could lead to another verdict: whether they
	// match cannot be determined here.
	maybe []string
}

// passes follows a packet from a built-in chain.
func (t *table) passes(chain string, p packet) fate {
	var f fate
	if verdict, rule := t.walk(chain, p, &f, 0); verdict != "" {
		f.accept, f.target, f.rule = verdict == "ACCEPT", verdict, rule
		return f
	}
	f.accept = t.policy[chain] != "DROP"
	return f
}

// translated reports whether the packet's source is translated.
func (f fate) translated() bool {
	return f.target == "MASQUERADE" || f.target == "SNAT" || f.target == "NETMAP"
}

// deepest bounds jumps; iptables refuses loops.
const deepest = 32

// walk returns the verdict of a chain, or "" if the packet passes it without
// one.
func (t *table) walk(chain string, p packet, f *fate, depth int) (verdict, rule string) {
	for _, line := range t.chains[chain] {
		m, target := match(line, p)
		if m == no {
			continue
		}
		switch target {
		case "ACCEPT", "DROP", "REJECT", "MASQUERADE", "SNAT", "NETMAP":
			if m == yes {
				return target, line
			}
			f.maybe = append(f.maybe, line)
		case "RETURN":
			if m == yes {
				return "", ""
			}
			f.maybe = append(f.maybe, line)
		default:
			if t.chains[target] == nil || depth == deepest {
				continue // LOG, MARK, …
			}
			if m == maybe {
				f.maybe = append(f.maybe, line)
				continue
			}
			if verdict, rule := t.walk(target, p, f, depth+1); verdict != "" {
				return verdict, rule
			}
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
func match(line string, p packet) (m answer, target string) {
	words := split(line)
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
			if p.proto == "" {
				unsure()
			} else {
				meets(value == p.proto)
			}
		case "--dport":
			from, to, ranged := strings.Cut(value, ":")
			if !ranged {
				to = from
			}
			a, errA := strconv.Atoi(from)
			b, errB := strconv.Atoi(to)
			if errA != nil || errB != nil || p.dport == 0 {
				unsure()
			} else {
				meets(a <= p.dport && p.dport <= b)
			}
		case "-i", "-o":
			name := p.in
			if words[i] == "-o" {
				name = p.out
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
			a := p.src
			if words[i] == "-d" {
				a = p.dst
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

// split cuts a rule into words. Comments are in double quotes, with a backslash
// before each quote and backslash (xtables_save_string in iptables).
func split(line string) []string {
	var (
		words                  []string
		word                   strings.Builder
		quoted, escaped, begun bool
	)
	for _, r := range line + " " {
		switch {
		case escaped:
			escaped = false
			word.WriteRune(r)
		case quoted && r == '\\':
			escaped = true
		case r == '"':
			quoted, begun = !quoted, true // the word may be empty
		case r == ' ' && !quoted:
			if begun {
				words = append(words, word.String())
			}
			word.Reset()
			begun = false
		default:
			begun = true
			word.WriteRune(r)
		}
	}
	return words
}

// deleteRule returns the command that deletes a rule.
func (t *table) deleteRule(line string) string {
	return t.program + " -D" + strings.TrimPrefix(line, "-A")
}
