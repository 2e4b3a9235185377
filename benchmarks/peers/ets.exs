# The Elixir side of ets.py: a table as an Elixir application keeps its sessions in, read directly or
# through its GenServer. It is told what to do on standard input, a line each, and answers a line each:
#
#     keys KIND PATH            the ids of a kind, a line each          ok
#     fill                      a session of each id of kind own       ok
#     ROW KIND COUNT            do a row once for each of the ids      NANOSECONDS
#     memory                                                           BYTES
#
# A line that is none, or the end of input, ends it.

defmodule Sessions do
  use GenServer

  @table :session_registry
  @statuses [:active, :idle]

  def start_link, do: GenServer.start_link(__MODULE__, nil, name: __MODULE__)

  @impl true
  def init(nil) do
    :ets.new(@table, [:named_table, :set, :public, read_concurrency: true])
    {:ok, nil}
  end

  @impl true
  def handle_call({:look_up, id}, _from, state), do: {:reply, look_up(id), state}
  def handle_call({:status, id}, _from, state), do: {:reply, status(id), state}
  def handle_call(:list_all, _from, state), do: {:reply, list_all(), state}
  def handle_call(:count, _from, state), do: {:reply, count(), state}
  def handle_call(:create, _from, state), do: {:reply, create(), state}
  def handle_call({:update, id}, _from, state), do: {:reply, update(id), state}
  def handle_call({:terminate, id}, _from, state), do: {:reply, terminate(id), state}

  def call(request), do: GenServer.call(__MODULE__, request, :infinity)

  def look_up(id) do
    case :ets.lookup(@table, id) do
      [{_, session}] -> {:ok, session}
      [] -> {:error, :not_found}
    end
  end

  def status(id) do
    {:ok, session} = look_up(id)
    session.status
  end

  def list_all do
    for {_, session} <- :ets.tab2list(@table), session.status != :terminated, do: session
  end

  def count do
    :ets.foldl(fn {_, s}, found -> Map.update(found, s.status, 1, &(&1 + 1)) end, %{}, @table)
  end

  def create do
    <<a::binary-8, b::binary-4, c::binary-4, d::binary-4, e::binary-12>> =
      Base.encode16(:crypto.strong_rand_bytes(16), case: :lower)

    insert("session_#{a}-#{b}-#{c}-#{d}-#{e}")
  end

  def insert(id) do
    now = DateTime.utc_now()

    session = %{
      session_id: id,
      pid: nil,
      status: :initializing,
      created_at: now,
      updated_at: now,
      metadata: %{"project" => "my-project", "user" => "ann", "n" => 3},
      llm_config: %{"model" => "gpt-4", "temperature" => 0.7}
    }

    true = :ets.insert(@table, {id, session})
    id
  end

  def update(id) do
    {:ok, session} = look_up(id)
    [active, idle] = @statuses
    status = if session.status == active, do: idle, else: active
    changed = %{session | status: status, updated_at: DateTime.utc_now()}
    :ets.insert(@table, {id, changed})
  end

  def terminate(id), do: :ets.delete(@table, id)
  def memory, do: :ets.info(@table, :memory) * :erlang.system_info(:wordsize)
end

defmodule Rows do
  # What to do once for each id, without and with the GenServer between.
  def work("ets", row) when row in ["look_up", "miss"], do: &Sessions.look_up/1
  def work("ets", "status"), do: &Sessions.status/1
  def work("ets", "update"), do: &Sessions.update/1
  def work("ets", "terminate"), do: &Sessions.terminate/1
  def work("ets", "create"), do: fn _ -> Sessions.create() end

  def work("genserver", row) when row in ["look_up", "miss"],
    do: fn id -> Sessions.call({:look_up, id}) end

  def work("genserver", "status"), do: fn id -> Sessions.call({:status, id}) end
  def work("genserver", "update"), do: fn id -> Sessions.call({:update, id}) end
  def work("genserver", "terminate"), do: fn id -> Sessions.call({:terminate, id}) end
  def work("genserver", "create"), do: fn _ -> Sessions.call(:create) end

  # What to do once for all.
  def whole("ets", "list_all"), do: &Sessions.list_all/0
  def whole("ets", "count"), do: &Sessions.count/0
  def whole("genserver", "list_all"), do: fn -> Sessions.call(:list_all) end
  def whole("genserver", "count"), do: fn -> Sessions.call(:count) end

  def run(way, row, _ids) when row in ["list_all", "count"] do
    work = whole(way, row)
    timed(fn -> work.() end)
  end

  def run(way, row, ids) do
    work = work(way, row)
    before = if row == "create", do: MapSet.new(known())
    taken = timed(fn -> Enum.each(ids, work) end)
    # The table is as it was before, whatever the row did.
    if row == "create", do: for(id <- known(), id not in before, do: Sessions.terminate(id))
    if row == "terminate", do: Enum.each(ids, &Sessions.insert/1)
    taken
  end

  defp known, do: Enum.map(:ets.tab2list(:session_registry), &elem(&1, 0))

  defp timed(work) do
    begun = System.monotonic_time(:nanosecond)
    work.()
    System.monotonic_time(:nanosecond) - begun
  end
end

defmodule Worker do
  def loop(way, keys) do
    case String.split(IO.gets("") |> to_string()) do
      ["keys", kind, path] ->
        ids = path |> File.read!() |> String.split() |> Enum.map(&("session_" <> &1))
        IO.puts("ok")
        loop(way, Map.put(keys, kind, ids))

      ["fill"] ->
        Enum.each(keys["own"], &Sessions.insert/1)
        IO.puts("ok")
        loop(way, keys)

      ["memory"] ->
        IO.puts(Sessions.memory())
        loop(way, keys)

      [row, kind, count] ->
        IO.puts(Rows.run(way, row, Enum.take(keys[kind], String.to_integer(count))))
        loop(way, keys)

      _ ->
        :ok
    end
  end
end

[way] = System.argv()
{:ok, _} = Sessions.start_link()
Worker.loop(way, %{})
