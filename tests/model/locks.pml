/*
 * The lock on a source tree, as a model for Spin. README.md says which function of lockbuild each step is.
 *
 * A build is three processes: frontend, hook host and hook. An open file carries a lock, and the processes that have
 * it open (`refs`) share the lock. Any process may be killed between any two steps. A wait blocks until the lock is
 * free; so a lock that never becomes free, and a wake-up that is lost, are invalid end states.
 * test_model.py defines the scene (BUILDS, KILLS, ...) and the guards (LOCKS_TRAVEL, ...), and takes out one at a time.
 */
#define F 1      /* the frontend lives, or has the file open */
#define H 2      /* the host */
#define K 4      /* the hook */
#define OUT 8    /* `flock` */
#define LOCK 0   /* the targets of a lock, in their order: the lock file, */
#define DIR 1    /* the inode of the directory, */
#define UV 2     /* uv's lock file */
#define OUTER 3  /* the open file of the directory that `flock DIR lockbuild` inherits */
#define NESTED 4 /* the name and inode of the lock file for nested builds */
#define NONE 15  /* no inode, no build */
mtype = { silent, asked, started, ended }; /* what frontend and host have said */
typedef Open { byte inode = NONE; byte refs; byte locked } /* 1: exclusively, 2: shared */
Open file[BUILDS * 4];         /* for each build and target */
byte named[5];                 /* the inode to which each name leads now */
byte exclusive[6], shared[6];  /* how many open files hold a lock on an inode */
byte alive[BUILDS], blocked;   /* blocked: other programs that wait in flock */
mtype said[BUILDS] = silent;
bit closed[BUILDS], crashed[BUILDS], doomed[BUILDS], inside[BUILDS], waits[3], nested[BUILDS], flocked;
byte environment = NONE;       /* the build that holds the lock of the build environment */
byte writers, readers, guests; /* hooks in the tree: exclusive, with a private view, of nested builds */
hidden byte i;

#define WHEN(condition, action) if :: condition -> action :: else fi
#define LIVES(b, who) (alive[b] & (who))
#define SHARED(b) (b >= PRIVATE && b != ALONE && !(nested[b] && NESTED_ALONE))
#define NEST(b) (b >= 1 && b <= NESTS)
#define FILE(t) file[me * 4 + t]
#define NAME (t == DIR -> 0 : (t == UV -> 1 : (nested[me] -> NESTED : 2 + (me == OTHER_CACHE))))
#define IS_FREE(n) (exclusive[n] == 0 && (SHARED(me) || shared[n] == 0))
#define IS_ENCLOSED (ENCLOSING && me == FLOCK && t == DIR)
#define ANNOUNCED (waits[0] || waits[1] || waits[2] || blocked)
#define PIPE_ENDS (closed[me] || !LIVES(me, F))
#define TAKES(t) (TARGETS >> t & 1 && !(nested[me] && t >= NESTED_LOCK))

inline lock(f) { atomic { IS_FREE(f.inode) -> d_step {
    if :: SHARED(me) -> f.locked = 2; shared[f.inode]++ :: else -> f.locked = 1; exclusive[f.inode]++ fi } } }
inline unlock(f) { /* for all that have it open */
    if :: f.locked == 1 -> exclusive[f.inode]-- :: f.locked == 2 -> shared[f.inode]-- :: else fi;
    f.locked = 0 }
inline close(f, who) { /* nobody will lock a file again that is unlocked and that its frontend has closed */
    f.refs = f.refs & ~(who);
    WHEN(f.refs == 0 && f.locked, unlock(f)); WHEN(!f.locked && !(f.refs & F), f.refs = 0; f.inode = NONE) }
inline free(f) { unlock(f); close(f, F) }
inline free_all() {
    for (i : LOCK .. UV) { WHEN(FILE(i).locked && FILE(i).refs & F, free(FILE(i))) }; i = 0 }
inline inherits(parent, child) {
    for (i : LOCK .. OUTER) { WHEN(FILE(i).refs & parent, FILE(i).refs = FILE(i).refs | child) }; i = 0 }
inline ends(who) { /* the kernel closes the files of a process that ends, in whatever way */
    for (i : LOCK .. OUTER) { close(FILE(i), who) };
    alive[me] = alive[me] & ~(who);
    if
    :: who == F -> waits[me] = 0; flocked = flocked && me != FLOCK; WHEN(environment == me, environment = NONE)
    :: who == K -> WHEN(inside[me], if :: nested[me] -> guests-- :: SHARED(me) -> readers-- :: else -> writers-- fi);
        inside[me] = 0; doomed[me] = 0
    :: else
    fi;
    WHEN(!alive[me], said[me] = silent; closed[me] = 0; crashed[me] = 0; nested[me] = 0); i = 0 }

proctype Frontend(byte me) {
    byte t; bit starts_over;
end:
    atomic {
        (NEST(me) -> inside[0] : (me == FLOCK -> flocked : 1));
        d_step {
            alive[me] = F | H; said[me] = silent; crashed[me] = 0;
            nested[me] = NESTING && NEST(me) && LIVES(0, F) && LIVES(0, H) } }
    {
        WHEN(ENVIRONMENT, environment == NONE -> environment = me; WHEN(ORDER || me > 0, environment = NONE));
again:  atomic { t = LOCK; !SHARED(me) || !GATE || (GATE_LETS_ENCLOSED && me == FLOCK) || !ANNOUNCED };
        do
        :: atomic {
                do :: t <= UV && !TAKES(t) -> t++ :: else -> break od;
                WHEN(t > UV, goto held);
                d_step { WHEN(!(FILE(t).refs & F),
                    nested[me] = nested[me] && named[NESTED] != NONE;
                    FILE(t).inode = named[NAME]; FILE(t).refs = F) } };
            if
            :: lock(FILE(t))
            :: atomic { IS_ENCLOSED -> d_step { close(FILE(t), F); t++ } }; goto next
            :: atomic { !IS_FREE(FILE(t).inode) && !IS_ENCLOSED ->
                d_step {
                    waits[me] = !SHARED(me) && !nested[me];
                    starts_over = t > LOCK && NO_WAIT_WHILE_HOLDING;
                    WHEN(starts_over, free_all()) } };
                if :: lock(FILE(t)) :: me == HURRIED -> goto timed_out fi;
                if :: starts_over -> d_step { free(FILE(t)); starts_over = 0 }; goto again :: else fi
            fi;
            if :: atomic { named[NAME] == FILE(t).inode || !RECHECK -> t++ } :: else -> d_step { free(FILE(t)) } fi;
next:       skip
        od;
held:   atomic { environment == NONE || environment == me -> d_step { /* an environment with extra requirements */
            environment = NONE; waits[me] = 0; t = 0;
            WHEN(NESTS && me == 0, named[NESTED] = NESTED);
            said[me] = asked;
            WHEN(LOCKS_TRAVEL && LIVES(me, H), inherits(F, H)) } };
        if :: said[me] == ended || !LIVES(me, H) || me == HURRIED -> closed[me] = 1 fi;
        if
        :: atomic { crashed[me] -> doomed[me] = said[me] == started && LIVES(me, K) };
            atomic { me > 0 || exclusive[NESTED] == 0 || !TAKE_BACK ->
                WHEN(me == 0 && TAKE_BACK, named[NESTED] = NONE) }
        :: !LIVES(me, H) && !crashed[me]
        :: me == HURRIED && LIVES(me, H)
        fi;
        d_step {
            WHEN(HEIRS && (crashed[me] || LIVES(me, H)), for (i : LOCK .. OUTER) { close(FILE(i), F) });
            free_all() };
timed_out:
        if
        :: !TIMEOUT_IS_ERROR && !closed[me] -> goto held
        :: STREAM && SHARED(me) && closed[me] -> d_step { closed[me] = 0; said[me] = silent; alive[me] = alive[me] | H }; goto again
        :: atomic { (TIMEOUT_IS_ERROR || closed[me]) && !(STREAM && SHARED(me)) -> d_step { ends(F) } }
        fi
    } unless { !LIVES(me, F) };
    d_step { t = 0; starts_over = 0 }
}

proctype Host(byte me) {
end:
    do :: atomic { LIVES(me, H) && PIPE_ENDS && said[me] != asked -> d_step { ends(H) } }
    :: atomic { LIVES(me, H) && said[me] == asked -> d_step {
            alive[me] = alive[me] | K; inherits(H, K); WHEN(HOOK_SAYS_GROUP, said[me] = started) } };
        {
            said[me] = started;
            if :: !LIVES(me, K) :: LIFELINE && PIPE_ENDS -> doomed[me] = LIVES(me, K) != 0; !LIVES(me, K) fi;
            said[me] = ended; PIPE_ENDS;
            atomic { me > 0 || exclusive[NESTED] == 0 || !END_OF_NESTING ->
                WHEN(me == 0 && END_OF_NESTING, named[NESTED] = NONE) };
            d_step { ends(H) }
        } unless { !LIVES(me, H) }
    od
}

proctype Hook(byte me) {
end:
    do :: atomic { LIVES(me, K) -> d_step {
            inside[me] = 1;
            if
            :: nested[me] -> assert(!guests && (SHARED(0) -> !writers : !readers && writers == inside[0])); guests++
            :: SHARED(me) && !nested[me] -> assert(!writers && (!guests || SHARED(0))); readers++
            :: else -> assert(!writers && !readers && !guests); writers++
            fi } };
        {
#if NESTS /* the hook waits for the builds that it started, or not */
            if :: me == 0 -> !LIVES(1, F) && !(NEST(2) && LIVES(2, F)) :: skip fi;
#endif
            LIVES(me, F) || !LIVES(me, H) /* only its host ends a hook that resists */
        } unless { doomed[me] || !LIVES(me, K) };
        d_step { ends(K) }
    od
}
proctype Flock(byte me) {
    blocked++; atomic { exclusive[0] + shared[0] == 0 -> d_step { blocked--;
        FILE(OUTER).inode = 0; FILE(OUTER).refs = OUT | F; FILE(OUTER).locked = 1; exclusive[0] = 1; flocked = 1 } };
    if :: !flocked :: skip fi; /* its command has ended; it is killed */
    d_step { close(FILE(OUTER), OUT) }
}
proctype UvBuild() {
    blocked++; atomic { exclusive[1] + shared[1] == 0 -> exclusive[1] = 1; blocked-- };
    d_step { assert(!writers && !readers && !guests); writers++ }; d_step { writers--; exclusive[1] = 0 }
}
proctype Killer() {
    byte me, n;
end:
    do :: atomic { n < KILLS -> select(me : 0 .. BUILDS - 1);
        if
        :: LIVES(me, F & MORTAL) -> d_step { ends(F); n++ }
        :: LIVES(me, H & MORTAL) -> d_step { crashed[me] = 1; ends(H); n++ }
        :: LIVES(me, K & MORTAL) -> d_step { ends(K); n++ }
        :: else
        fi; me = 0 } od
}

init {
    atomic {
        for (i : 0 .. 3) { named[i] = i };
        named[NESTED] = NONE;
        for (i : 0 .. BUILDS - 1) { run Frontend(i); run Host(i); run Hook(i) };
        WHEN(FLOCK != NONE, run Flock(FLOCK));
        WHEN(KILLS, run Killer()); WHEN(UV_BUILD, run UvBuild()); i = 0 }
end:
    /* The lock file is removed and made again: 1 at any time, 2 while no process has it locked. */
    atomic { REMOVER == 1 || (REMOVER == 2 && exclusive[2] + shared[2] == 0) -> named[2] = 5 }
}
ltl served { [] (ANNOUNCED -> <> !ANNOUNCED) }
