package bench

import (
	"runtime"

	"golang.org/x/sys/unix"
)

// end is a side of a conversation.
type end bool

const (
	clientEnd end = false
	serverEnd end = true
)

// onCPU runs f on a thread that stays on one CPU, the first that this process
// may use for the client's end and the last for the server's. Real hosts do not
// share CPUs, but by default the scheduler lets both ends of a conversation share
// one. A request through the kernel's paths is then just a switch from one thread
// to the other, which takes a quarter of the time.
func onCPU(e end, f func() error) error {
	done := make(chan error)
	go func() {
		// Never unlocked: the thread ends with the goroutine.
		runtime.LockOSThread()
		err := pin(e)
		if err == nil {
			err = f()
		}
		done <- err
	}()
	return <-done
}

func pin(e end) error {
	var may unix.CPUSet
	if err := unix.SchedGetaffinity(0, &may); err != nil {
		return err
	}
	cpus := cpusOf(&may)
	cpu := cpus[0]
	if e == serverEnd {
		cpu = cpus[len(cpus)-1]
	}
	var only unix.CPUSet
	only.Set(cpu)
	return unix.SchedSetaffinity(0, &only)
}

// cpusOf lists the CPUs of a set, in ascending order.
func cpusOf(set *unix.CPUSet) (cpus []int) {
	for cpu := 0; len(cpus) < set.Count(); cpu++ {
		if set.IsSet(cpu) {
			cpus = append(cpus, cpu)
		}
	}
	return cpus
}
