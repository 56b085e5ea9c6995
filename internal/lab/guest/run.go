package guest

import (
	"bytes"
	"fmt"
	"strings"
	"time"
)

// commandLimit is how long a command may take: an emulated CPU on a busy machine
// is slow.
const commandLimit = 2 * time.Minute

// Run runs one line of shell in the guest and returns its stdout
// and stderr, without the last end of line. It returns an error if the exit code is
// not 0, if the guest ends, or if the command takes too long. A command that continues
// afterwards must be put into the background with "&" and write to a file, not to the
// console. Only one goroutine may call Run at a time.
func (g *Guest) Run(line string) (output string, err error) {
	if strings.ContainsAny(line, "\n\r") {
		return "", fmt.Errorf("run %q in the guest: it has more than one line", line)
	}
	g.runs++
	mark := fmt.Sprintf("\nguest: command %d has ended: ", g.runs)
	from := g.console.size()
	// The shell of init.sh reads this; the commands it runs do not read the console.
	typed := fmt.Sprintf("sh -c %s </dev/null 2>&1; printf '\\n%s%%d\\n' $?\n", quote(line), mark[1:])
	if _, err := g.console.in.Write([]byte(typed)); err != nil {
		return "", fmt.Errorf("run %q in the guest: %w", line, err)
	}
	code := ""
	err = g.console.await(from, commandLimit, func(text []byte) bool {
		before, after, ok := bytes.Cut(text, []byte(mark))
		if ok {
			output = strings.TrimSuffix(string(before), "\n")
			after, _, ok = bytes.Cut(after, []byte("\n"))
			code = string(after)
		}
		return ok
	})
	if err == nil && code != "0" {
		err = fmt.Errorf("exit code %s", code)
	}
	if err != nil {
		return output, fmt.Errorf("run %q in the guest: %w", line, err)
	}
	return output, nil
}

// quote quotes s as one word of shell.
func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }
