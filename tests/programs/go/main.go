// A program of many parts of Go's runtime and library: goroutines, the collector, timers, channels, recovered
// and fatal panics, signals, children and sockets. Its first argument names the part.
package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"runtime/debug"
	"sort"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

var parts = map[string]func(){
	"goroutines": goroutines,
	"collector":  collector,
	"timers":     timers,
	"channels":   channels,
	"recovered":  recovered,
	"panic":      unrecovered,
	"nil":        nilPointer,
	"overflow":   overflow,
	"deadlock":   deadlock,
	"signals":    signals,
	"killed":     killed,
	"children":   children,
	"sockets":    sockets,
	"memory":     memory,
}

func main() {
	if len(os.Args) < 2 || parts[os.Args[1]] == nil {
		fmt.Fprintln(os.Stderr, "usage: goprogram PART")
		os.Exit(64)
	}
	parts[os.Args[1]]()
}

func check(err error) {
	if err != nil {
		fmt.Println("error:", err)
		os.Exit(1)
	}
}

// A thousand goroutines that share a counter, a mutex and a condition.
func goroutines() {
	var all sync.WaitGroup
	var lock sync.Mutex
	var counted atomic.Int64
	total := 0
	for n := range 1000 {
		all.Add(1)
		go func() {
			defer all.Done()
			runtime.Gosched()
			counted.Add(1)
			lock.Lock()
			defer lock.Unlock()
			total += n
		}()
	}
	all.Wait()
	fmt.Println(counted.Load(), total)

	// One that never yields: only a signal of the runtime can take its CPU away.
	runtime.GOMAXPROCS(1)
	var stop atomic.Bool
	spun := make(chan bool)
	go func() {
		for i := 0; !stop.Load(); i++ {
		}
		spun <- true
	}()
	runtime.Gosched()
	stop.Store(true)
	fmt.Println("spun", <-spun)
}

type tree struct{ left, right *tree }

func grow(depth int) *tree {
	if depth == 0 {
		return &tree{}
	}
	return &tree{grow(depth - 1), grow(depth - 1)}
}

func (t *tree) count() int {
	if t.left == nil {
		return 1
	}
	return 1 + t.left.count() + t.right.count()
}

// Garbage in several goroutines while the collector runs, and what is still needed afterwards.
func collector() {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	kept, sums := grow(10), make(chan int)
	for range 4 {
		go func() {
			sum := 0
			for range 20 {
				sum += grow(10).count()
			}
			sums <- sum
		}()
	}
	for range 4 {
		fmt.Println(<-sums)
	}
	finalized := make(chan bool, 1)
	func() {
		dropped := &[64]byte{1}
		runtime.SetFinalizer(dropped, func(*[64]byte) { finalized <- true })
	}()
	runtime.GC()
	debug.FreeOSMemory()
	runtime.ReadMemStats(&after)
	fmt.Println(kept.count(), <-finalized, after.NumGC > before.NumGC, after.Mallocs-after.Frees < 20000)
}

// Timers fire in order, tickers again and again, a stopped one never; a context of time runs out.
func timers() {
	begin, order := time.Now(), make(chan int, 3)
	for _, n := range []int{3, 1, 2} {
		time.AfterFunc(time.Duration(n)*30*time.Millisecond, func() { order <- n })
	}
	never := time.AfterFunc(50*time.Millisecond, func() { fmt.Println("never") })
	fmt.Println(never.Stop(), <-order, <-order, <-order, time.Since(begin) >= 90*time.Millisecond)
	ticker, ticks := time.NewTicker(5*time.Millisecond), 0
	for range ticker.C {
		if ticks++; ticks == 5 {
			break
		}
	}
	ticker.Stop()
	fmt.Println(ticks)
}

// A pipeline, a select with a default and with a time limit, a closed channel.
func channels() {
	numbers, squares := make(chan int), make(chan int, 8)
	go func() {
		defer close(numbers)
		for n := range 100 {
			numbers <- n
		}
	}()
	var workers sync.WaitGroup
	for range 3 {
		workers.Add(1)
		go func() {
			defer workers.Done()
			for n := range numbers {
				squares <- n * n
			}
		}()
	}
	go func() { workers.Wait(); close(squares) }()
	sum := 0
	for square := range squares {
		sum += square
	}
	_, open := <-squares
	fmt.Println(sum, open)
	silent := make(chan int)
	select {
	case <-silent:
	default:
		fmt.Println("nobody")
	}
	select {
	case <-silent:
	case <-time.After(10 * time.Millisecond):
		fmt.Println("too late")
	}
}

func try(what string, failing func()) {
	defer func() {
		failed := recover()
		fault, isError := failed.(runtime.Error)
		fmt.Println(what, "recovered:", failed, isError && fault != nil)
	}()
	failing()
}

// The faults that become panics: two of the MMU, one of the divider, others of checks.
func recovered() {
	var pointer *[4]int
	var table map[string]int
	zero, index := 0, 7
	try("read", func() { fmt.Println(pointer[1]) })
	try("write", func() { pointer[1] = 1 })
	try("divide", func() { fmt.Println(1 / zero) })
	try("index", func() { fmt.Println([]int{1}[index]) })
	try("map", func() { table["a"] = 1 })
	try("type", func() { var any interface{} = 1; fmt.Println(any.(string)) })
	try("close", func() { c := make(chan int); close(c); close(c) })
	try("own", func() { panic(errors.New("mine")) })
	debug.SetPanicOnFault(true)
	try("fault", func() {
		page, err := syscall.Mmap(-1, 0, 4096, syscall.PROT_NONE, syscall.MAP_ANON|syscall.MAP_PRIVATE)
		check(err)
		defer func() {
			failed := recover()
			_, hasAddress := failed.(interface{ Addr() uintptr })
			fmt.Println("address known", hasAddress)
			check(syscall.Munmap(page))
			panic("again")
		}()
		page[0] = 1
	})
}

func unrecovered() {
	defer fmt.Println("deferred")
	panic(fmt.Sprintf("for %d reasons", 2))
}

func nilPointer() {
	var pointer *tree
	go func() { fmt.Println(pointer.left) }()
	select {}
}

func deeper(n int) int { return deeper(n+1) + 1 }

func overflow() {
	debug.SetMaxStack(1 << 20)
	fmt.Println(deeper(0))
}

func deadlock() { <-make(chan int) }

// Signals to the process itself: told through a channel, ignored, and put back.
func signals() {
	told := make(chan os.Signal, 4)
	signal.Notify(told, syscall.SIGUSR1, syscall.SIGTERM)
	for _, each := range []syscall.Signal{syscall.SIGUSR1, syscall.SIGTERM} {
		check(syscall.Kill(os.Getpid(), each))
		fmt.Println(<-told)
	}
	signal.Ignore(syscall.SIGHUP)
	check(syscall.Kill(os.Getpid(), syscall.SIGHUP))
	fmt.Println(signal.Ignored(syscall.SIGHUP))
	signal.Stop(told)
	signal.Reset()
}

// SIGTERM with no handler of the program's: the runtime's own handler ends it by the same signal.
func killed() {
	check(syscall.Kill(os.Getpid(), syscall.SIGTERM))
	select {}
}

// This program again, as children: output through a pipe, input, statuses, one that is killed, none at all.
func children() {
	self, err := os.Executable()
	check(err)
	output, err := exec.Command(self, "channels").Output()
	check(err)
	fmt.Printf("%q\n", output)
	child := exec.Command(self, "panic")
	var errs strings.Builder
	child.Stderr = &errs
	err = child.Run()
	fmt.Println(err, strings.Contains(errs.String(), "panic: for 2 reasons"))
	fmt.Println(exec.Command(self, "killed").Run())
	sleeper := exec.Command(self, "sockets")
	sleeper.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	check(sleeper.Start())
	check(sleeper.Process.Kill())
	fmt.Println(sleeper.Wait())
	_, err = exec.LookPath("nosuch")
	fmt.Println(err)
	fmt.Println(exec.Command("/nosuch").Run())
	var all sync.WaitGroup
	for range 4 {
		all.Add(1)
		go func() { defer all.Done(); check(exec.Command(self, "timers").Run()) }()
	}
	all.Wait()
}

// A server and clients over the loopback, one of them on a unix socket; a reader's time limit; a refusal.
func sockets() {
	for _, network := range []string{"tcp", "unix"} {
		address := map[string]string{"tcp": "127.0.0.1:0", "unix": "@goprogram"}[network]
		server, err := net.Listen(network, address)
		check(err)
		go func() {
			for {
				connection, err := server.Accept()
				if err != nil {
					return
				}
				go func() {
					defer connection.Close()
					line, _ := bufio.NewReader(connection).ReadString('\n')
					io.WriteString(connection, strings.ToUpper(line))
				}()
			}
		}()
		answers := make(chan string)
		for n := range 5 {
			go func() {
				connection, err := net.Dial(network, server.Addr().String())
				check(err)
				defer connection.Close()
				fmt.Fprintf(connection, "client %d\n", n)
				answer, err := io.ReadAll(connection)
				check(err)
				answers <- string(answer)
			}()
		}
		var got []string
		for range 5 {
			got = append(got, <-answers)
		}
		sort.Strings(got)
		fmt.Printf("%s %q\n", network, got)
		check(server.Close())
		_, err = net.Dial(network, server.Addr().String())
		fmt.Println(errors.Is(err, syscall.ECONNREFUSED))
	}
	packets, err := net.ListenPacket("udp", "127.0.0.1:0")
	check(err)
	packets.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
	_, _, err = packets.ReadFrom(make([]byte, 10))
	fmt.Println(errors.Is(err, os.ErrDeadlineExceeded))
}

// More memory than the process's limit leaves it: the runtime says so itself.
func memory() {
	check(syscall.Setrlimit(syscall.RLIMIT_AS, &syscall.Rlimit{Cur: 3 << 30, Max: 3 << 30}))
	var kept [][]byte
	for {
		kept = append(kept, make([]byte, 64<<20))
	}
}
