package logging

import (
	"errors"
	"fmt"
	"log/slog"
	"strings"

	"golang.org/x/sys/unix"
)

// filesNeeded is a limit of open files that suffices for a node: with the eight threads and
// sixteen queues that twilld uses by default at most and all connections that it accepts it
// holds fewer than 256, beside those of clients of an embedded etcd (at most 1,088).
const filesNeeded = "256 suffice, 4096 with --embedded-etcd"

// Explain adds the remedy to an error that a limit of open files has caused: of this process
// or of a program that it runs (EMFILE, getrlimit(2), RLIMIT_NOFILE), or of the host (ENFILE).
// It returns other errors as they are.
func Explain(err error) error {
	if err == nil {
		return nil
	}
	if r := limitRemedy(err, err.Error()); r != "" {
		return fmt.Errorf("%w; %s", err, r)
	}
	return err
}

// limitRemedy returns the remedy for an error, of which only the text may be known: clients
// of stores and other programs do not pass errors of system calls on.
func limitRemedy(err error, text string) string {
	is := func(errno unix.Errno) bool {
		return errors.Is(err, errno) || strings.Contains(strings.ToLower(text), errno.Error())
	}
	switch {
	case is(unix.ENFILE):
		return "all processes of this host together have too many: raise the sysctl fs.file-max"
	case is(unix.EMFILE):
		limit := ""
		var now unix.Rlimit
		if unix.Getrlimit(unix.RLIMIT_NOFILE, &now) == nil {
			limit = fmt.Sprintf(" is %d", now.Cur)
		}
		return fmt.Sprintf(`the limit of open files (RLIMIT_NOFILE)%s: raise it with LimitNOFILE= in the unit or "ulimit -n" (%s)`, limit, filesNeeded)
	}
	return ""
}

// explained is a ReplaceAttr of slog that explains errors.
func explained(_ []string, a slog.Attr) slog.Attr {
	if a.Key != KeyError {
		return a
	}
	err, _ := a.Value.Any().(error)
	if text := a.Value.String(); err != nil || a.Value.Kind() == slog.KindString {
		if r := limitRemedy(err, text); r != "" {
			a.Value = slog.StringValue(text + "; " + r)
		}
	}
	return a
}
