package main

import (
	"context"
	"flag"
	"io"
	"time"

	"github.com/twillnet/twill/internal/status"
)

const aboutStatus = `Asks the twilld on this node what it does: whether it is ready or what it waits
for, which TUN device and kernel offloads are in force and why, which peers it
reaches and how much went each way, and what was dropped for which reason.`

// statusTimeout bounds the wait for a daemon that hangs.
const statusTimeout = 5 * time.Second

func runStatus(ctx context.Context, args []string, stdout, _ io.Writer) error {
	fs := flag.NewFlagSet("status", flag.ContinueOnError)
	asJSON := fs.Bool("json", false, "print the JSON document instead of a page")
	socket := fs.String("socket", status.DefaultSocket, "`PATH` of twilld's --control-socket")
	if done, err := parseFlags(fs, aboutStatus, args, stdout); done || err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	if *asJSON {
		raw, err := status.FetchJSON(ctx, *socket)
		if err != nil {
			return err
		}
		_, err = stdout.Write(raw)
		return err
	}
	d, err := status.Fetch(ctx, *socket)
	if err != nil {
		return err
	}
	return d.WritePage(stdout)
}
