package main

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/twillnet/twill/internal/command"
	"github.com/twillnet/twill/internal/status"
)

const aboutLogLevel = `Changes the log level of the running twilld for a while, without a restart. LEVEL is
debug, info, warn or error; "configured" undoes an earlier change. After that time, or
when twilld restarts, the level of its flags applies again.`

// longestLogLevel is the longest time for which a log level can be changed. For
// longer there is a flag of twilld.
const longestLogLevel = 24 * time.Hour

func runLogLevel(ctx context.Context, call *command.Call) error {
	during := call.Duration("for", 5*time.Minute, "`TIME` after which the configured level applies again")
	socket := call.String("socket", status.DefaultSocket, aboutSocket)
	operands, help, err := call.ParseOperands(aboutLogLevel, "LEVEL")
	switch {
	case help || err != nil:
		return err
	case len(operands) != 1:
		return call.Usagef("want one LEVEL: debug, info, warn, error or configured")
	case *during <= 0 || *during > longestLogLevel:
		return call.Usagef("--for %s: want more than 0 and at most %s", *during, longestLogLevel)
	}
	var level slog.Level
	if operands[0] == "configured" {
		*during = 0
	} else if err := level.UnmarshalText([]byte(operands[0])); err != nil {
		return call.Usagef("%q is not a level: want debug, info, warn, error or configured", operands[0])
	}
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	if err := status.ChangeLogLevel(ctx, *socket, level, *during); err != nil {
		return err
	}
	if *during == 0 {
		_, err = fmt.Fprintln(call.Stdout, "the configured log level applies again")
	} else {
		_, err = fmt.Fprintf(call.Stdout, "log level %s for %s\n", level, *during)
	}
	return err
}
