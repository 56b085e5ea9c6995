package rules

import (
	"fmt"
	"slices"
	"strings"
)

// transaction is the input of iptables-restore --noflush for one table. The
// kernel applies either all of it or nothing.
type transaction struct {
	table string
	lines []string
}

// declare creates the chain, or empties it if it exists.
func (tx *transaction) declare(name string) { tx.line(":%s - [0:0]", name) }

// add adds a rule; words begin with -A and the chain.
func (tx *transaction) add(words []string) {
	quoted := slices.Clone(words)
	for i, w := range quoted {
		if strings.ContainsRune(w, ' ') {
			quoted[i] = `"` + w + `"`
		}
	}
	tx.line("%s", strings.Join(quoted, " "))
}

// again adds a rule given in the format of iptables -S.
func (tx *transaction) again(line string) {
	line = cutCounters(line)
	tx.line("%s", line)
}

// delete deletes the first rule equal to the given one, in the format of
// iptables -S.
func (tx *transaction) delete(line string) {
	line = cutCounters(line)
	tx.line("-D%s", strings.TrimPrefix(line, "-A"))
}

func (tx *transaction) flush(name string)  { tx.line("-F %s", name) }
func (tx *transaction) remove(name string) { tx.line("-X %s", name) }

// line adds a line; it does not change copies of tx.
func (tx *transaction) line(format string, args ...any) {
	tx.lines = append(slices.Clip(tx.lines), fmt.Sprintf(format, args...))
}

func (tx *transaction) text() string {
	return fmt.Sprintf("*%s\n%s\nCOMMIT\n", tx.table, strings.Join(tx.lines, "\n"))
}

// isLine reports whether a line of iptables -S consists of exactly these words.
func isLine(line string, words []string) bool { return slices.Equal(Words(line), words) }

// Words splits a line of iptables -S into words. Those with characters that do
// not occur in names are in double quotes, with a backslash before each quote
// and backslash (xtables_save_string of iptables). Counters are dropped.
func Words(line string) []string {
	line = cutCounters(line)
	var (
		words  []string
		word   strings.Builder
		quoted bool
		begun  bool
	)
	for i := 0; i < len(line); i++ {
		switch c := line[i]; {
		case quoted && c == '\\' && i+1 < len(line):
			i++
			word.WriteByte(line[i])
		case c == '"':
			quoted, begun = !quoted, true
		case c == ' ' && !quoted:
			if begun {
				words = append(words, word.String())
			}
			word.Reset()
			begun = false
		default:
			word.WriteByte(c)
			begun = true
		}
	}
	if begun {
		words = append(words, word.String())
	}
	return words
}

// cutCounters removes the counters that iptables 1.8.0 to 1.8.2 list without
// being asked to, and that go-iptables moves to the end of the line.
func cutCounters(line string) string {
	i := strings.LastIndex(line, " -c ")
	if i < 0 {
		return line
	}
	var packets, bytes uint64
	if n, err := fmt.Sscanf(line[i:], " -c %d %d", &packets, &bytes); n != 2 || err != nil {
		return line
	}
	if line[i:] != fmt.Sprintf(" -c %d %d", packets, bytes) {
		return line
	}
	return line[:i]
}

// oneLine returns err with its text on one line.
func oneLine(err error) error {
	text := strings.Join(strings.Fields(err.Error()), " ")
	if text == err.Error() {
		return err
	}
	return &compact{text, err}
}

type compact struct {
	text string
	err  error
}

func (c *compact) Error() string { return c.text }
func (c *compact) Unwrap() error { return c.err }
