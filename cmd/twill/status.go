package main

import (
	"context"
	"time"

	"github.com/twillnet/twill/internal/command"
	"github.com/twillnet/twill/internal/status"
)

const aboutStatus = `Shows what the twilld on this node does: whether it is ready or what it is waiting for,
which devices and kernel offloads are in use and why, the peers with their traffic,
and what was dropped for which reason.`

// statusTimeout bounds the wait for a daemon that does not answer.
const statusTimeout = 5 * time.Second

// aboutSocket is the help text of --socket.
const aboutSocket = "`PATH` of the control socket, twilld's --socket"

func runStatus(ctx context.Context, c *command.Call) error {
	asJSON := c.Bool("json", false, "print the JSON document instead of a page")
	socket := c.String("socket", status.DefaultSocket, aboutSocket)
	if help, err := c.ParseFlags(aboutStatus); help || err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	if *asJSON {
		raw, err := status.FetchJSON(ctx, *socket)
		if err != nil {
			return err
		}
		_, err = c.Stdout.Write(raw)
		return err
	}
	d, err := status.Fetch(ctx, *socket)
	if err != nil {
		return err
	}
	return d.WritePage(c.Stdout)
}
