package main

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"github.com/twillnet/twill/internal/command"
	"github.com/twillnet/twill/internal/lab/pinger"
)

const aboutPing = `Sends an ICMP echo request every millisecond until Ctrl-C, and prints how many were
lost and the longest time without an answer: the cost of a restart or an upgrade. It runs
in the current network namespace; start it in a pod's with "nsenter --net=…". --file
records the time of each request and how long its answer took; it is written at the end,
so that nothing but the network can delay an answer.`

// answerTime is how long to wait for missing answers at the end.
const answerTime = time.Second

func runPing(ctx context.Context, c *command.Call) error {
	interval := c.Duration("interval", time.Millisecond, "`TIME` between two requests")
	file := c.String("file", "", "`FILE` to write a line per request to: number, time, microseconds to the answer or \"lost\"")
	operands, help, err := c.ParseOperands(aboutPing, "ADDRESS")
	if help || err != nil {
		return err
	}
	if len(operands) != 1 {
		return c.Usagef("want one address")
	}
	addr, err := netip.ParseAddr(operands[0])
	if err != nil {
		return c.Usagef("%v", err)
	}
	if *interval <= 0 {
		return c.Usagef("want an interval above 0")
	}
	p, err := pinger.Start(addr, *interval)
	if err != nil {
		return err
	}
	<-ctx.Done()
	r, err := p.Stop(answerTime)
	if err != nil {
		return err
	}
	if *file != "" {
		if err := r.WriteFile(*file); err != nil {
			return err
		}
	}
	_, err = fmt.Fprintln(c.Stdout, r)
	return err
}
