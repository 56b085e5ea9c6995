package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/twillnet/twill/internal/diag"
	"github.com/twillnet/twill/internal/textpage"
)

const (
	// diagAtOnce bounds the nodes whose archives are being made at the same time.
	diagAtOnce = 8
	// diagPatience bounds the time for the archive of one node.
	diagPatience = 10 * time.Minute
	// maxPacked bounds the size of the archive of one node. A large one has 1 MiB.
	maxPacked = 64 << 20
)

// packAll writes the archives of all nodes to w, as one, and reports each on progress.
func (c *diagCommand) packAll(ctx context.Context, w io.Writer, dir string, progress io.Writer) error {
	nodes, err := c.members(ctx)
	if err != nil {
		return err
	}
	bundle, err := diag.NewBundle(w, dir)
	if err != nil {
		return err
	}
	var all sync.WaitGroup
	var mu sync.Mutex // of what follows
	var failed int
	var writing error
	slots := make(chan struct{}, diagAtOnce)
	for _, m := range nodes {
		slots <- struct{}{}
		all.Go(func() {
			defer func() { <-slots }()
			packed, problem := c.packOn(ctx, m)
			taken, err := bundle.Add(m.Addr.String(), packed)
			if problem == nil {
				problem = err
			}
			mu.Lock()
			defer mu.Unlock()
			if problem != nil {
				failed++
				if err := bundle.Note(m.Addr.String(), problem); err != nil && writing == nil {
					writing = err
				}
			}
			reportNode(progress, m, taken, problem)
		})
	}
	all.Wait()
	switch err := bundle.Close(); {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case writing != nil:
		return writing
	case err != nil:
		return err
	}
	if failed == len(nodes) {
		return fmt.Errorf("diag: no archive from any of %d nodes, see above", failed)
	}
	c.missing = failed
	return nil
}

// packOn returns the archive that twill diag makes on a node, as far as it came.
func (c *diagCommand) packOn(ctx context.Context, m member) (packed *bytes.Buffer, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, diagPatience, fmt.Errorf("not done within %s", diagPatience))
	defer cancel()
	packed = new(bytes.Buffer)
	if m.own {
		return packed, diag.Pack(ctx, packed, "here", c.diagnosis(c.unit, c.interval), io.Discard)
	}
	r, err := c.start(ctx, m, "diag", "-o=-", "--unit="+c.unit, "--interval="+c.interval.String())
	if err != nil {
		return packed, err
	}
	_ = r.in.Close()
	n, err := io.Copy(packed, io.LimitReader(r.out, maxPacked+1))
	if ended := r.wait(); ended != nil {
		err = ended
	}
	switch {
	case ctx.Err() != nil:
		err = context.Cause(ctx)
	case n > maxPacked:
		err = fmt.Errorf("its archive is larger than %d MiB", maxPacked>>20)
	}
	return packed, err
}

// reportNode writes what was taken of a node, and what doctor finds bad there, whose lines
// are as wide as a page.
func reportNode(w io.Writer, m member, t diag.Taken, problem error) {
	var p textpage.Page
	text := fmt.Sprintf("%d files, %d bytes", t.Files, t.Bytes)
	if problem != nil {
		text += ": " + problem.Error()
	}
	head := fmt.Sprintf("%-15s  ", m.Addr)
	p.Text(len(head), head, text)
	for _, bad := range t.Bad {
		p.Line("%s", bad)
	}
	fmt.Fprint(w, p.String())
}
