// Package diag packs what a bug report about a node needs into one archive: what the
// daemon says of itself, and what the kernel has. It changes nothing, leaves out
// passwords and keys, and bounds the size of each part and the time that it takes.
package diag

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"syscall"
	"time"
)

const (
	// maxPart bounds each file of the archive: 5,000 peers make 1 MiB of status.
	maxPart = 16 << 20
	// patience bounds the time for each file, as a program may hang.
	patience = 15 * time.Second
)

// Part is one file of the archive.
type Part struct {
	Name string // of the file: "kernel/routes.txt"
	What string // what is in it, for the list
	Read func(context.Context) ([]byte, error)
	Wait time.Duration // for what Read waits for as a rule; more than that and 15 s is an error
}

// Command returns a part with the output of a program. If the program fails, the part
// ends with its errors.
func Command(name, what string, program ...string) Part {
	return Part{Name: name, What: what, Read: func(ctx context.Context) ([]byte, error) {
		cmd := exec.CommandContext(ctx, program[0], program[1:]...)
		cmd.WaitDelay = time.Second // for children that keep the pipe open
		var out limited
		cmd.Stdout, cmd.Stderr = &out, &out
		err := cmd.Run()
		if err != nil {
			err = fmt.Errorf("%s: %w", cmd, err)
		}
		return out.Bytes(), err
	}}
}

// File returns a part with the content of a file.
func File(name, what, path string) Part {
	return Part{Name: name, What: what, Read: func(context.Context) ([]byte, error) {
		f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0) // a pipe without a writer does not block
		if err != nil {
			return nil, err
		}
		defer f.Close()
		return io.ReadAll(io.LimitReader(f, maxPart))
	}}
}

// Pack writes parts to w, a tar archive compressed with zstd, and reports each on
// progress as soon as it is taken. A part that cannot be read in whole, or at all, is
// no error: the reason is in the archive, in the file with ".error" after its name.
// All files are in the directory dir.
func Pack(ctx context.Context, w io.Writer, dir string, parts []Part, progress io.Writer) error {
	archive, err := newArchive(w)
	if err != nil {
		return err
	}
	for _, p := range parts {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		body, err := p.read(ctx)
		if len(body) > 0 {
			if err := archive.add(dir+"/"+p.Name, body); err != nil {
				return err
			}
		}
		if err == nil {
			fmt.Fprintf(progress, "%8d  %-24s %s\n", len(body), p.Name, p.What)
			continue
		}
		fmt.Fprintf(progress, "%8d  %-24s %s: %v\n", len(body), p.Name, p.What, err)
		if err := archive.add(dir+"/"+p.Name+".error", []byte(err.Error()+"\n")); err != nil {
			return err
		}
	}
	return archive.close()
}

func (p *Part) read(ctx context.Context) ([]byte, error) {
	limit := p.Wait + patience
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("not done within %s", limit))
	defer cancel()
	body, err := p.Read(ctx)
	if err != nil && ctx.Err() != nil {
		err = fmt.Errorf("%w (%w)", err, context.Cause(ctx))
	}
	return body, err
}

// limited is a buffer that drops what exceeds maxPart.
type limited struct{ bytes.Buffer }

func (b *limited) Write(p []byte) (int, error) {
	if room := maxPart - b.Len(); room > 0 {
		b.Buffer.Write(p[:min(len(p), room)])
	}
	return len(p), nil
}
